"""Methods that the paper does not have, on its CIFAR-10 and net: as their own papers train, or beside FGSM-SDI."""

from __future__ import annotations

from dataclasses import replace

from ..methods import Fgsm2StepOptions, FgsmMepOptions, NFgsmOptions, StandardOptions
from .paper_rows import CYCLIC, PIECEWISE, TRUE_CLASS
from .presets import Group
from .recipe import smoothing_of

CLASSES = 10
MEP_TRUE_CLASS = 0.6  # that the labels of FGSM-MEP's released code leave on the true class


def beyond_presets() -> Group:
    """ResNet18 on CIFAR-10 with FGSM-MEP, N-FGSM, FGSM of two steps, and without an attack."""
    return Group(
        title="Beyond the paper: ResNet18 on CIFAR-10",
        recipes=(
            replace(
                PIECEWISE,
                name="cifar10-fgsm-mep",
                about="after Jia et al., prior-guided initialization, whose released code leaves 0.6 on the true class",
                method=FgsmMepOptions(),
                label_smoothing=smoothing_of(MEP_TRUE_CLASS, CLASSES),
            ),
            replace(
                CYCLIC,
                name="cifar10-n-fgsm",
                about="after de Jorge et al., make some noise: 30 epochs, cyclic up to 0.2",
                method=NFgsmOptions(),
            ),
            replace(
                PIECEWISE,
                name="cifar10-fgsm-2step",
                about="the control of table5-fgsm-sdi: the same recipe, labels and threat, with the sign of the "
                "gradient in the generator's place",
                method=Fgsm2StepOptions(),
                label_smoothing=smoothing_of(TRUE_CLASS, CLASSES),
                box=False,
            ),
            replace(
                PIECEWISE,
                name="cifar10-standard",
                about="no attack, under Table V's schedule: what robustness costs in accuracy and in time",
                method=StandardOptions(),
            ),
        ),
    )
