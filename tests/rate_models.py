"""Latent models by hand, and what else the tests of training for few bytes share."""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np

from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.recipes.dead_units import without_dead_units
from minicompress.representation import decode
from minicompress.search.weights import weights

U = 2.0**-53


def free(step):
    """The price that is none."""
    return 0.0


def latent_of(layers, steps, growths):
    """A latent model by hand."""
    rows = np.array([steps, growths], decode(weights(Sequential(layers)).popitem()[1]).dtype)
    return Sequential((*layers, Dense(rows)))


def exchanged(name, value, function=without_dead_units):
    """The function with something inside it exchanged."""

    def wrong(*arguments):
        with mock.patch.object(sys.modules[function.__module__], name, value):
            return function(*arguments)

    return wrong
