"""Which CUDA tests bench/gpu.sh repeats under compute-sanitizer: small shapes, every kernel, no graphs (each tensor has its own
memory there, which a capture cannot have)."""

import pytest
import torch

SANITIZED = {
    "test_group_norm": ["test_equals_torch", "test_any_rank", "test_empty_maps"],
    "test_nms": ["test_cuda_gives_the_indices_of_the_cpu"],
    "test_nms_padded": ["test_cuda_gives_the_result_of_the_cpu"],
    "test_roi_align_cuda": [
        "test_pyramid_equals_the_cpu",
        "test_few_and_many_boxes",
        "test_no_boxes_and_no_images",
        "test_views_and_addresses_that_are_not_multiples_of_16_bytes",
    ],
    "test_soft_nms": ["test_cuda_gives_the_result_of_the_cpu", "test_cuda_16_bit_and_derivative"],
    "test_standardize_weight": ["test_cuda_equals_the_cpu"],
    "test_weighted_fusion_cuda": ["test_the_gpu_agrees_with_the_cpu", "test_ties_and_nan_on_the_gpu"],
    "test_ws_conv": ["test_cuda_equals_the_cpu"],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") and getattr(item, "originalname", None) in SANITIZED.get(item.path.stem, []):
            item.add_marker(pytest.mark.sanitizer)


@pytest.fixture
def gpu_if_marked(request):
    """Skips a test with the `cuda` mark where there is no GPU."""
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
