"""Data sets: reading COCO annotations (`coco`), the generated set (`shapes`), batches of decoded images (`dataset`).

Only `dataset` and `augment` need torch; reading, checking and generating data do not load it.
"""
