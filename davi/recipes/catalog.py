"""What each recipe costs, for the table of ``davi recipes``: known without building a model."""

from __future__ import annotations

from typing import NamedTuple

START = "attentive_mnist_demo"
"""The recipe to begin with."""


class Entry(NamedTuple):
    """A recipe's size and cost.

    Arguments:
        parameters: of the model, for the recipe's images.
        cost: of the training: its time on two CPU cores, or on GPUs.
    """

    parameters: int
    cost: str


CATALOG: dict[str, Entry] = {
    "attentive_autoregressive_digits_tiny": Entry(14_141, "seconds, CPU"),
    "attentive_cifar10": Entry(118_974_710, "272 GPU hours"),
    "attentive_cifar10_900": Entry(118_974_710, "608 GPU hours"),
    "attentive_cifar10_baseline": Entry(79_206_420, "GPU days"),
    "attentive_digits": Entry(129_172, "2 minutes, CPU"),
    "attentive_digits_tiny": Entry(13_465, "seconds, CPU"),
    "attentive_fashion_mnist": Entry(2_644_952, "GPU hours"),
    "attentive_mnist": Entry(327_526, "15 minutes, CPU"),
    "attentive_mnist_autoregressive": Entry(283_887, "15 minutes, CPU"),
    "attentive_mnist_demo": Entry(327_526, "4 minutes, CPU"),
    "attentive_mnist_full": Entry(7_875_704, "GPU days"),
    "attentive_omniglot": Entry(7_875_704, "GPU days"),
    "attentive_photos": Entry(569_330, "15 minutes, CPU"),
    "biva_cifar10": Entry(41_755_280, "GPU weeks"),
    "biva_digits": Entry(81_970, "2 minutes, CPU"),
    "biva_digits_tiny": Entry(10_496, "seconds, CPU"),
    "biva_mnist": Entry(30_116_706, "GPU days"),
    "biva_mnist_small": Entry(769_746, "15 minutes, CPU"),
    "biva_photos": Entry(273_932, "15 minutes, CPU"),
    "gated_pixelcnn_cifar10": Entry(13_796_352, "GPU days"),
    "gated_pixelcnn_cifar10_small": Entry(271_634, "15 minutes, CPU"),
    "gated_pixelcnn_digits": Entry(74_321, "2 minutes, CPU"),
    "gated_pixelcnn_digits_tiny": Entry(1_403, "seconds, CPU"),
    "gated_pixelcnn_imagenet32": Entry(116_855_296, "GPU days"),
    "gated_pixelcnn_mnist": Entry(117_377, "15 minutes, CPU"),
    "iaf_vae_cifar10": Entry(41_116_820, "GPU days"),
    "iaf_vae_cifar10_10": Entry(20_353_940, "GPU days"),
    "iaf_vae_digits": Entry(78_114, "2 minutes, CPU"),
    "iaf_vae_digits_tiny": Entry(6_310, "seconds, CPU"),
    "iaf_vae_mnist": Entry(33_919_512, "GPU days"),
    "iaf_vae_mnist_small": Entry(391_282, "15 minutes, CPU"),
    "iaf_vae_photos": Entry(279_548, "15 minutes, CPU"),
    "iwae_mnist": Entry(425_284, "GPU days"),
    "iwae_mnist_2layer": Entry(521_084, "GPU days"),
    "iwae_mnist_small": Entry(425_284, "10 minutes, CPU"),
    "ladder_vae_convolutional_digits_tiny": Entry(5_193, "seconds, CPU"),
    "ladder_vae_digits": Entry(148_264, "1 minute, CPU"),
    "ladder_vae_digits_tiny": Entry(10_726, "seconds, CPU"),
    "ladder_vae_mnist": Entry(1_858_936, "GPU hours"),
    "ladder_vae_mnist_small": Entry(1_858_936, "15 minutes, CPU"),
    "ladder_vae_photos": Entry(165_564, "15 minutes, CPU"),
    "nvae_autoregressive_digits_tiny": Entry(23_651, "seconds, CPU"),
    "nvae_celeba64": Entry(153_281_364, "736 GPU hours"),
    "nvae_celeba_hq256": Entry(330_798_664, "2,256 GPU hours"),
    "nvae_cifar10": Entry(130_852_480, "440 GPU hours"),
    "nvae_cifar10_small": Entry(315_188, "15 minutes, CPU"),
    "nvae_digits": Entry(306_342, "2 minutes, CPU"),
    "nvae_digits_tiny": Entry(22_894, "seconds, CPU"),
    "nvae_imagenet32": Entry(268_509_444, "1,680 GPU hours"),
    "nvae_mnist": Entry(33_363_134, "42 GPU hours"),
    "nvae_mnist_small": Entry(367_654, "15 minutes, CPU"),
    "nvae_photos": Entry(315_188, "15 minutes, CPU"),
    "pixelcnn_cifar10": Entry(4_290_816, "GPU days"),
    "pixelcnn_digits_tiny": Entry(881, "seconds, CPU"),
    "pixelcnn_mnist": Entry(26_433, "hours, CPU"),
    "pixelcnn_pp_cifar10": Entry(53_659_080, "40 GPU days"),
    "pixelcnn_pp_cifar10_small": Entry(312_868, "15 minutes, CPU"),
    "pixelcnn_pp_digits": Entry(311_042, "2 minutes, CPU"),
    "pixelcnn_pp_digits_tiny": Entry(9_596, "seconds, CPU"),
    "pixelcnn_pp_mnist": Entry(310_498, "15 minutes, CPU"),
    "pixelsnail_cifar10": Entry(46_180_788, "GPU weeks"),
    "pixelsnail_cifar10_small": Entry(67_429, "15 minutes, CPU"),
    "pixelsnail_digits": Entry(76_092, "3 minutes, CPU"),
    "pixelsnail_digits_tiny": Entry(2_770, "seconds, CPU"),
    "pixelsnail_imagenet32": Entry(46_237_548, "GPU weeks"),
    "pixelsnail_mnist": Entry(62_975, "15 minutes, CPU"),
    "pixelvae_2level_digits_tiny": Entry(37_417, "seconds, CPU"),
    "pixelvae_collapse_mnist_small": Entry(361_561, "3 minutes, CPU"),
    "pixelvae_digits_tiny": Entry(5_984, "seconds, CPU"),
    "pixelvae_imagenet64": Entry(180_535_168, "GPU weeks"),
    "pixelvae_mnist": Entry(2_409_441, "1 GPU day"),
    "pixelvae_mnist_small": Entry(616_882, "15 minutes, CPU"),
    "vae_convolutional_digits_tiny": Entry(4_446, "seconds, CPU"),
    "vae_digits": Entry(121_952, "1 minute, CPU"),
    "vae_digits_tiny": Entry(4_240, "seconds, CPU"),
    "vae_lagging_digits_tiny": Entry(1_208, "seconds, CPU"),
    "vae_mnist": Entry(425_284, "1 GPU day"),
    "vae_mnist_small": Entry(425_284, "10 minutes, CPU"),
    "vae_photos": Entry(345_508, "15 minutes, CPU"),
    "very_deep_vae_autoregressive_digits_tiny": Entry(8_001, "seconds, CPU"),
    "very_deep_vae_cifar10": Entry(39_145_700, "2 GPU weeks"),
    "very_deep_vae_cifar10_small": Entry(237_234, "15 minutes, CPU"),
    "very_deep_vae_digits": Entry(52_393, "2 minutes, CPU"),
    "very_deep_vae_digits_tiny": Entry(7_211, "seconds, CPU"),
    "very_deep_vae_ffhq1024": Entry(109_366_904, "80 GPU weeks"),
    "very_deep_vae_ffhq256": Entry(114_874_852, "80 GPU weeks"),
    "very_deep_vae_imagenet32": Entry(119_280_868, "80 GPU weeks"),
    "very_deep_vae_imagenet64": Entry(125_005_860, "80 GPU weeks"),
    "very_deep_vae_mnist": Entry(93_569, "15 minutes, CPU"),
    "very_deep_vae_photos": Entry(226_462, "15 minutes, CPU"),
    "vlae_digits_tiny": Entry(17_537, "seconds, CPU"),
    "vlae_mnist": Entry(5_220_803, "GPU hours"),
    "vlae_mnist_small": Entry(330_801, "15 minutes, CPU"),
}
"""Of every recipe that comes with the program."""
