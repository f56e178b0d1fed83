"""`fastnas predict`: detects on an image and draws what was found."""

import click

from fastnas.cli.main import common_options


@click.command()
@click.argument("image", type=click.Path())
@click.option("--weights", required=True, metavar="FILE", type=click.Path(), help="Weights, or ONNX that export wrote.")
@click.option("--out", required=True, metavar="PICTURE", type=click.Path(), help="Where to draw: .jpg, .png, .webp or .bmp.")
@click.option("--score", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Leave out detections below this score.")
@common_options
def command(image, weights, out, score, as_json):
    """Detect on IMAGE and draw boxes with class and score into PICTURE, in the size of IMAGE.

    The image is scaled to exactly the blueprint's input size (bilinear with antialias) and normalized as in training. Its pixels
    are used as stored: an EXIF orientation is not applied. Boxes are x1, y1, x2, y2 in pixels of IMAGE.
    """
    from fastnas.export.picture import draw, picture_format
    from fastnas.export.predictor import open_predictor, predict

    picture_format(out)
    predictor = open_predictor(weights)
    detections = predict(predictor, image, score)
    draw(image, detections, out)
    if not as_json:
        for found in detections:
            click.echo(f"{found.name} {found.score:.3f}  {' '.join(f'{side:.1f}' for side in found.box)}")
        click.echo(f"{len(detections)} detections: {out}")
    return {
        "image": image,
        "weights": weights,
        "blueprint": predictor.blueprint.text,
        "detections": [found.to_dict() for found in detections],
        "picture": out,
    }
