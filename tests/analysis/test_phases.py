"""Phases of Gabor patches that were made with known phases."""

import math

import torch

from fvlight.analysis.phases import circular_gaps, in_plane_images, largest_cluster, phase_plane, phases
from fvlight.zoo.cells import gabor


def test_phases_of_gabors_are_found_relative_to_the_first_filter():
    filters = gabor(32, torch.tensor([0.3, 1.4, 2.0, 4.0]))
    basis = phase_plane(filters)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    wanted = torch.tensor([0.0, 40.0, 100.0, 250.0], dtype=torch.float64)
    images = gabor(32, 0.3 + wanted.deg2rad())[:, None]
    angle, share = phases(images, basis)
    turned = torch.stack([angle, (360 - angle) % 360])  # which way round is up to the basis
    error = ((turned - wanted + 180) % 360 - 180).abs().amax(1).min()
    assert error < 0.2
    assert share.min() > 0.999


def test_noise_lies_outside_the_plane():
    basis = phase_plane(gabor(32, torch.tensor([0.0, 1.0])))
    generator = torch.Generator().manual_seed(0)
    _, share = phases(torch.randn(5, 1, 32, 32, generator=generator), basis)
    assert share.max() < 0.3


def test_images_made_in_the_plane_have_the_phases_asked_for():
    basis = phase_plane(gabor(16, torch.tensor([0.0, math.pi / 2])))
    angle, share = phases(in_plane_images(basis, (1, 16, 16), 8), basis)
    torch.testing.assert_close(circular_gaps(angle), torch.full((8,), 45.0, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(share, torch.ones(8, dtype=torch.float64))


def test_gaps_go_round_the_circle_and_clusters_too():
    angles = torch.tensor([350.0, 10.0, 100.0, 355.0])
    assert circular_gaps(angles).tolist() == [90.0, 250.0, 5.0, 15.0]
    assert largest_cluster(angles, 20) == 3
    assert largest_cluster(angles, 19) == 2
