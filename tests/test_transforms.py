"""Geometry as properties: a point follows its pixel through every transform."""

import pytest
import torch

from recombinator.keypoints import FACE_5, FACE_68, RADII
from recombinator.models.decode import decode, maximum, subpixel, within_by_temperature
from recombinator.transforms.affine import apply, box_affine, compose, flip_affine, invert, warp
from recombinator.transforms.augment import Augment, blurred, draw_points, draw_samples, occluded

N = 24


def blobs(points, size, sigma):
    """(B, K, 2) -> (B, K, size, size): a Gaussian at each point."""
    centers = torch.arange(size) + 0.5
    g = torch.exp(-((centers - points[..., None]) ** 2) / (2 * sigma**2))
    return 255 * g[:, :, 1, :, None] * g[:, :, 0, None, :]


def centroid(images):
    p = images.flatten(2) / images.flatten(2).sum(2, keepdim=True)
    p = p.unflatten(2, images.shape[-2:])
    centers = torch.arange(images.shape[-1]) + 0.5
    return torch.stack([(p.sum(2) * centers).sum(-1), (p.sum(3) * centers).sum(-1)], -1)


def random_affine(generator):
    boxes = torch.tensor([14.0, 14.0, 132.0]).repeat(N, 1)
    r = lambda *s: torch.rand(*s, generator=generator) * 2 - 1  # noqa: E731
    affine = box_affine(boxes, 80, 0.1 * r(N, 2), 1 + 0.1 * r(N), 40 * r(N))
    return compose(affine, flip_affine(80, r(N) < 0))


def test_a_point_follows_its_pixel():
    generator = torch.Generator().manual_seed(0)
    to_source = random_affine(generator)
    points = 70 + 20 * torch.rand(N, 1, 2, generator=generator)
    warped = warp(blobs(points, 160, 4.0), to_source, 80)
    torch.testing.assert_close(centroid(warped), apply(invert(to_source), points), atol=0.02, rtol=0)


def test_identity_warp_keeps_every_pixel():
    images = torch.rand(2, 3, 40, 40)
    boxes = torch.tensor([[0.0, 0.0, 40.0]]).repeat(2, 1)
    torch.testing.assert_close(warp(images, box_affine(boxes, 40), 40), images, atol=1e-5, rtol=0)


def test_outside_is_black():
    boxes = torch.tensor([[-40.0, 0.0, 80.0]])
    out = warp(torch.full((1, 1, 80, 80), 200.0), box_affine(boxes, 80), 80)
    assert (out[..., :39] == 0).all() and (out[..., 41:] > 199).all()


def test_invert_and_compose():
    a, b = random_affine(torch.Generator().manual_seed(1)), random_affine(torch.Generator().manual_seed(2))
    points = torch.rand(N, 5, 2) * 80
    torch.testing.assert_close(apply(invert(a), apply(a, points)), points, atol=1e-3, rtol=0)
    torch.testing.assert_close(apply(compose(a, b), points), apply(a, apply(b, points)), atol=1e-3, rtol=0)


def test_box_corners_are_the_papers():
    """Without jitter the box's corners map to the network's corners; zoom > 1 shows more; rotation keeps the center."""
    box = torch.tensor([[13.0, 14.0, 134.0]])
    corners = torch.tensor([[[0.0, 0.0], [80.0, 0.0], [80.0, 80.0], [40.0, 40.0]]])
    plain = apply(box_affine(box, 80), corners)
    torch.testing.assert_close(plain, torch.tensor([[[13.0, 14.0], [147.0, 14.0], [147.0, 148.0], [80.0, 81.0]]]))
    zoomed = apply(box_affine(box, 80, zoom=torch.tensor([1.1])), corners)
    assert zoomed[0, 0, 0] < plain[0, 0, 0] and torch.allclose(zoomed[0, 3], plain[0, 3])
    turned = apply(box_affine(box, 80, degrees=torch.tensor([30.0])), corners)
    assert torch.allclose(turned[0, 3], plain[0, 3], atol=1e-4)
    side = (turned[0, 1] - turned[0, 0]).norm()
    assert side.item() == pytest.approx(134, abs=1e-3)
    moved = apply(box_affine(box, 80, shift=torch.tensor([[0.1, 0.0]])), corners)
    torch.testing.assert_close(moved[..., 0], plain[..., 0] + 13.4)


@pytest.mark.parametrize("keypoints", [FACE_5, FACE_68])
def test_mirroring_is_an_involution_that_swaps_left_and_right(keypoints):
    p = keypoints.mirrored
    assert [p[i] for i in p] == list(range(len(keypoints)))
    for i, j in enumerate(p):
        swapped = keypoints.names[i].translate({}).replace("left", "?").replace("right", "left").replace("?", "right")
        if "left" in keypoints.names[i] or "right" in keypoints.names[i]:
            assert swapped.rsplit("_", 1)[0] == keypoints.names[j].rsplit("_", 1)[0]


def sample(augment, seed=0):
    points = torch.tensor([[60.0, 60.0], [100.0, 58.0], [82.0, 80.0], [65.0, 105.0], [97.0, 106.0]]).repeat(N, 1, 1)
    images = blobs(points, 160, 3.0).to(torch.uint8)  # one channel a keypoint: a pixel knows whose it is
    boxes = torch.tensor([14.0, 14.0, 132.0]).repeat(N, 1)
    generator = torch.Generator().manual_seed(seed)
    return draw_samples(images, points, boxes, 80, augment, FACE_5.mirrored, generator)


def test_jittered_points_lie_on_their_pixels():
    inputs, points = sample(Augment(occlude=(0, 0)))
    torch.testing.assert_close(centroid(inputs), points, atol=0.05, rtol=0)


def test_flip_exchanges_left_and_right():
    inputs, points = sample(Augment(0.0, 0.0, 0, flip=True, occlude=(0, 0)))
    found = centroid(inputs)
    is_flipped = (points[:, 0] - found[:, 0]).norm(dim=1) > 1  # the channel of the left eye holds the right one now
    assert 0 < is_flipped.sum() < N
    torch.testing.assert_close(found[is_flipped][:, FACE_5.mirrored], points[is_flipped], atol=0.05, rtol=0)
    torch.testing.assert_close(found[~is_flipped], points[~is_flipped], atol=0.05, rtol=0)
    assert (points[:, 0, 0] < points[:, 1, 0]).all()  # "left" stays left


def test_jitter_ranges():
    points = torch.cat([sample(Augment(0.1, 0.0, 0, occlude=(0, 0)), s)[1] for s in range(20)])
    plain = sample(None)[1]
    offset = (points - plain.repeat(20, 1, 1))[:, 0]
    assert 7.5 < offset.abs().max() <= 8.0 + 1e-4
    turned = torch.cat([sample(Augment(0.0, 0.0, 40, occlude=(0, 0)), s)[1] for s in range(20)])
    eyes = turned[:, 1] - turned[:, 0]
    degrees = torch.rad2deg(torch.atan2(eyes[:, 1], eyes[:, 0]))
    base = torch.rad2deg(torch.atan2(*(plain[0, 1] - plain[0, 0]).flip(0)))
    assert 38 < (degrees - base).abs().max() <= 40.01


def test_a_share_of_the_samples_is_turned_by_any_angle():
    n = 2000
    points, boxes = torch.tensor([[[80.0, 20.0]]]).expand(n, 1, 2), torch.tensor([[0.0, 0.0, 160.0]]).expand(n, 3)
    augment = Augment(shift=0, zoom=0, degrees=10, turned=0.25)
    found, _ = draw_points(points, boxes, 80, augment, [0], torch.Generator().manual_seed(0))
    x, y = (found[:, 0] - 40).unbind(1)
    angle = torch.rad2deg(torch.atan2(x, -y))
    far = (angle.abs() > 10.1).float().mean().item()
    assert far == pytest.approx(0.25 * 340 / 360, abs=0.03)
    assert angle.abs().max() > 170 and ((angle > 90).any() and (angle < -90).any())
    assert augment.moves and Augment(shift=0, zoom=0, degrees=0, turned=0.1).moves


def test_same_seed_same_samples():
    augment = Augment(flip=True, gamma=1, blur=1, noise=5)
    assert all(torch.equal(a, b) for a, b in zip(sample(augment, 3), sample(augment, 3), strict=True))
    assert not torch.equal(sample(augment, 3)[0], sample(augment, 4)[0])


def test_rectangle_is_black_inside_and_of_the_papers_sizes():
    out = occluded(torch.full((500, 1, 80, 80), 9.0), (20, 50), torch.Generator().manual_seed(0))
    black = out[:, 0] == 0
    heights, widths = black.any(2).sum(1), black.any(1).sum(1)
    assert (black.sum((1, 2)) == heights * widths).all()
    assert {20, 50} <= set(heights.tolist()) and heights.min() == 20 and heights.max() == 50
    assert widths.min() == 20 and widths.max() == 50
    assert black[:, 0].any() and black[:, -1].any() and black[:, :, 0].any() and black[:, :, -1].any()


def test_blur_keeps_the_mean_and_zero_keeps_the_image():
    x = torch.rand(2, 1, 40, 40) * 255
    out = blurred(x, torch.tensor([0.0, 1.5]))
    torch.testing.assert_close(out[0], x[0], atol=1e-3, rtol=0)
    assert out[1].std() < 0.5 * x[1].std() and abs(out[1].mean() - x[1].mean()) < 3


@pytest.mark.parametrize("where", [(0.2, 0.3), (13.5, 40.5), (79.9, 0.1), (42.9, 79.6)])
def test_a_drawn_dot_is_found(where):
    """The cell-center convention: cell (i, j) spans [j, j + 1) x [i, i + 1), its center at + 0.5."""
    scores = torch.full((1, 1, 80, 80), -50.0)
    x, y = where
    scores[0, 0, int(y), int(x)] = 50.0
    expected = torch.tensor([[[int(x) + 0.5, int(y) + 0.5]]])
    assert torch.equal(maximum(scores), expected)
    found = subpixel(scores)
    torch.testing.assert_close(found.points, expected)
    assert found.confidence.item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found.covariance, torch.zeros(1, 1, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("tile", [1, 2])
def test_squares_at_several_temperatures_equal_those_of_decoding(tile):
    scores = torch.randn(3, 4, 12, 20).repeat_interleave(tile, 2).repeat_interleave(tile, 3) * 3
    scores[0, 0, :tile, :tile] = 20  # a highest cell in the corner
    temperatures = (0.3, 1.0, 4.0)
    found = within_by_temperature(scores, temperatures, tile)
    for i, temperature in enumerate(temperatures):
        torch.testing.assert_close(found[:, :, i], decode(scores, temperature, tile).within)


def test_subpixel_finds_the_center_of_a_gaussian():
    points = torch.tensor([[[30.2, 41.7], [10.5, 60.0]]])
    centers = torch.arange(80) + 0.5
    d = ((centers - points[..., None]) ** 2) / (2 * 0.8**2)
    scores = -(d[:, :, 1, :, None] + d[:, :, 0, None, :])
    found = subpixel(scores)
    torch.testing.assert_close(found.points, points, atol=0.01, rtol=0)
    assert (found.confidence > 0.99).all()
    assert (maximum(scores) - points).abs().max() <= 0.5


def test_confidence_is_the_mass_near_the_maximum():
    scores = torch.zeros(1, 1, 80, 80)
    scores[0, 0, 40, 40] = 1e-3
    found = subpixel(scores)
    assert found.confidence.item() == pytest.approx(49 / 6400, rel=1e-3)
    assert found.within.flatten().tolist() == pytest.approx([(2 * r + 1) ** 2 / 6400 for r in RADII], rel=1e-3)


def test_covariance_is_that_of_the_distribution():
    """Against sums written out over every cell, for a map that is neither round nor symmetric."""
    scores = 3 * torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    found = subpixel(scores)
    centers = torch.arange(20) + 0.5
    for b in range(2):
        for k in range(3):
            p = scores[b, k].flatten().softmax(0).view(20, 20)
            x, y = centers - found.points[b, k, 0], centers - found.points[b, k, 1]
            wanted = [(p * x**2).sum(), (p * x * y[:, None]).sum(), (p * y[:, None] ** 2).sum()]
            assert found.covariance[b, k].tolist() == pytest.approx([v.item() for v in wanted], rel=1e-4, abs=1e-4)


def test_temperature_widens_and_moves_no_highest_cell():
    scores = 5 * torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    plain, warm = decode(scores), decode(scores, 3.0)
    assert torch.equal(plain.highest, warm.highest) and (warm.within < plain.within).all()
