import math

import numpy as np
import pytest
import torch

from recombinator.evaluation import metrics
from recombinator.evaluation.tables import Evaluation
from recombinator.keypoints import FACE_5, FACE_68, KeypointSet
from recombinator.training.loss import l2_loss, softmax_loss


def slow_softmax_loss(scores, points, mask):
    """Eq. 2 by loops, the authors' masking: K * sum / count."""
    total, count = 0.0, 0
    b, k, size, _ = scores.shape
    for n in range(b):
        for i in range(k):
            if not mask[n, i]:
                continue
            x, y = (min(max(math.floor(v), 0), size - 1) for v in points[n, i].tolist())
            p = scores[n, i].flatten().softmax(0)[y * size + x]
            total, count = total - math.log(p), count + 1
    return k * total / count


@pytest.fixture
def problem():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, 20, 20, generator=g).double()
    points = torch.rand(3, 4, 2, generator=g).double() * 24 - 2
    mask = torch.rand(3, 4, generator=g) < 0.7
    return scores, points, mask


def test_softmax_loss_is_equation_2(problem):
    scores, points, mask = problem
    assert softmax_loss(scores, points, mask).item() == pytest.approx(slow_softmax_loss(scores, points, mask), rel=1e-6)


def test_masked_points_do_not_matter(problem):
    scores, points, mask = problem
    other = torch.where(mask[..., None], points, points + 5)
    for sigma in (0.0, 1.0):
        assert softmax_loss(scores, points, mask, sigma) == softmax_loss(scores, other, mask, sigma)
    assert softmax_loss(scores, points, torch.zeros_like(mask)).item() == 0


def test_soft_target_is_the_cross_entropy_with_a_gaussian(problem):
    scores, points, mask = problem
    centers = torch.arange(20).double() + 0.5
    g = (-((centers - points[..., None]) ** 2) / (2 * 0.9**2)).exp()
    target = g[:, :, 1, :, None] * g[:, :, 0, None, :]
    target = target / target.sum((2, 3), keepdim=True)
    terms = -(target * scores.flatten(2).log_softmax(2).unflatten(2, (20, 20))).sum((2, 3))
    expected = 4 * (terms * mask).sum() / mask.sum()
    torch.testing.assert_close(softmax_loss(scores, points, mask, 0.9), expected)
    narrow = softmax_loss(scores, points.floor().clamp(0, 19) + 0.5, mask, 0.05)
    torch.testing.assert_close(narrow, softmax_loss(scores, points, mask))


@pytest.mark.parametrize("loss", [lambda s, p, m: softmax_loss(s, p, m, 1.0), softmax_loss, l2_loss])
def test_gradients(problem, loss):
    scores, points, mask = problem
    small = scores[:1, :2, :6, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, points[:1, :2].clamp(0, 5), mask[:1, :2]), small)


def test_l2_loss_of_a_peak_is_its_squared_distance():
    scores = torch.full((1, 1, 20, 20), -60.0)
    scores[0, 0, 5, 8] = 60.0
    loss = l2_loss(scores, torch.tensor([[[11.5, 9.5]]]), torch.ones(1, 1))
    assert loss.item() == pytest.approx(3**2 + 4**2, rel=1e-5)


def test_point_errors_and_image_means():
    true = np.zeros((2, 3, 2))
    predicted = np.array([[[3, 4], [0, 0], [0, 0]], [[0, 1], [0, 2], [0, 3]]], float)
    errors = metrics.point_errors(predicted, true, np.array([10.0, 2.0]))
    np.testing.assert_allclose(errors, [[0.5, 0, 0], [0.5, 1, 1.5]])
    np.testing.assert_allclose(metrics.image_errors(errors), [0.5 / 3, 1])
    mask = np.array([[True, False, False], [False, False, False]])
    np.testing.assert_allclose(metrics.image_errors(errors, mask), [0.5, np.nan])


def test_rates_and_areas():
    errors = np.array([0.02, 0.05, 0.09, 0.3])
    assert metrics.failure_rate(errors) == 0.25
    np.testing.assert_allclose(metrics.cumulative(errors, np.array([0.01, 0.05, 0.5])), [0, 0.5, 1])
    grid = np.linspace(0, 0.1, 200_001)
    slow = np.trapezoid(metrics.cumulative(errors, grid), grid) / 0.1
    assert metrics.auc(errors) == pytest.approx(slow, abs=1e-4)
    assert metrics.auc(np.zeros(3)) == pytest.approx(1) and metrics.auc(np.ones(3)) == 0


def test_bootstrap_interval_covers_the_standard_error():
    errors = np.random.default_rng(0).gamma(2, 0.03, 3000)
    low, high = metrics.bootstrap_ci(errors)
    assert low < errors.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * errors.std() / math.sqrt(3000), rel=0.1)
    assert (low, high) == metrics.bootstrap_ci(errors)


def make_evaluation(predicted, true, keypoints=FACE_5, limits=None, at_border=None, subsets=None, file_pixels=None,
                    attributes=None):  # fmt: skip
    true = np.asarray(true, float)
    n, k = true.shape[:2]
    limits = np.tile([-50.0, -50.0, 130.0, 130.0], (n, 1)) if limits is None else np.array(limits, float)
    flags = np.zeros((n, k, 4), bool) if at_border is None else at_border
    return Evaluation(
        80, keypoints, ["x"] * n, list(subsets or [""] * n), true, np.ones((n, k), bool), np.asarray(predicted, float),
        np.floor(predicted) + 0.5, np.ones((n, k)), limits, flags, np.ones(n) if file_pixels is None else file_pixels,
        attributes or {},
    )  # fmt: skip


def test_the_papers_protocol_counts_whole_cells():
    true = np.array([[[20.9, 30.1], [45.9, 30.1], [33.5, 42.0], [24.0, 55.0], [42.0, 55.0]]])
    result = make_evaluation(true + [[0.0, 0.0], [0.3, 0.0], [0.0, 0.0], [0.0, -0.2], [0.0, 0.0]], true)
    # 45.9 + 0.3 falls into the next cell, 55.0 - 0.2 into the one before; the rest hit
    np.testing.assert_allclose(result.errors("paper")[0], [0, 1 / 25, 0, 1 / 25, 0])
    np.testing.assert_allclose(result.errors("continuous")[0], [0, 0.3 / 25, 0, 0.2 / 25, 0], atol=1e-12)
    assert result.summary()["nme_paper"] == pytest.approx(100 * 2 / 25 / 5)


def test_errors_are_reported_for_each_class_of_an_attribute():
    face = np.array([[20.5, 30.5], [45.5, 30.5], [33.5, 42.5], [24.5, 55.5], [42.5, 55.5]])
    true = np.stack([face] * 4)
    predicted = true + np.array([0.0, 2.5, 5.0, 2.5])[:, None, None] * np.array([1.0, 0.0])
    summary = make_evaluation(predicted, true, attributes={"pose": np.array([0, 2, 2, 0])}).summary()
    assert [(row["class"], row["images"]) for row in summary["by"]["pose"]] == [(0, 2), (2, 2)]
    assert [row["nme"] for row in summary["by"]["pose"]] == pytest.approx([5.0, 15.0])
    assert "by" not in make_evaluation(predicted, true).summary()


def test_truth_outside_the_crop_is_clamped_in_the_papers_protocol():
    true = np.array([[[-3.0, 30.0], [22.0, 30.0], [10, 42], [2, 55], [20, 55]]])
    result = make_evaluation(np.maximum(true, 0.5), true)
    assert result.errors("paper")[0, 0] == 0 and result.errors("continuous")[0, 0] == pytest.approx(3.5 / 25)


def test_predictions_are_clamped_to_the_photograph_and_the_oracle_moves_border_points():
    true = np.array([[[8.0, 30.0], [48.0, 30.0], [30, 42], [20, 55], [40, 55]]])
    predicted = true + np.array([[-6.0, 0.0], [0, 0], [0, 0], [0, 0], [0, 0]])
    limits = [[6.2, -20, 100, 100]]
    flags = np.zeros((1, 5, 4), bool)
    flags[0, 0, 0] = True
    result = make_evaluation(predicted, true, limits=limits, at_border=flags)
    assert result.errors("continuous")[0, 0] == pytest.approx(1.8 / 40)
    assert result.errors("paper")[0, 0] == pytest.approx(2 / 40)
    far = make_evaluation(true + [[[9.0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]], true, limits=limits, at_border=flags)
    assert far.errors("paper")[0, 0] == pytest.approx(9 / 40)
    assert far.errors("paper", oracle=True)[0, 0] == pytest.approx(2 / 40)
    assert far.summary()["nme_paper_oracle"] == pytest.approx(100 * 2 / 40 / 5)


def test_subsets_parts_and_normalizers_are_reported():
    rng = np.random.default_rng(0)
    true = rng.uniform(10, 70, (6, 68, 2))
    true[:, 36:42], true[:, 42:48] = [25, 30], [55, 30]
    predicted = true + rng.normal(0, 1, true.shape)
    predicted[:, :17] += 5  # the jaw, which is not among the 49 points
    report = make_evaluation(predicted, true, FACE_68, subsets=["common"] * 4 + ["challenging"] * 2).summary()
    assert report["images"] == 6 and {k: v["images"] for k, v in report["subsets"].items()} == {
        "common": 4, "challenging": 2,
    }  # fmt: skip
    both = (4 * report["subsets"]["common"]["nme"] + 2 * report["subsets"]["challenging"]["nme"]) / 6
    assert both == pytest.approx(report["nme"])
    assert report["nme_49"] < report["nme"] and report["nme_paper_49"] < report["nme_paper"]
    assert report["nme_outer"] == pytest.approx(report["nme"])  # the eyes were put on single points
    assert "nme_paper_oracle" not in report


def test_normalizers():
    points = np.zeros((2, 68, 2))
    points[:, 36:42] = [[30, 10], [32, 8], [34, 8], [36, 10], [34, 12], [32, 12]]
    points[:, 42:48] = points[:, 36:42] + [40, 0]
    np.testing.assert_allclose(FACE_68.scale(points), 40)  # mean of the two corners of each eye
    np.testing.assert_allclose(FACE_68.scale(points, "outer"), 46)
    bare = KeypointSet("mine", ("a", "b"))
    np.testing.assert_allclose(bare.scale(np.array([[[0, 0], [4, 9.0]]])), 6)


def test_keypoint_set_round_trip():
    for s in (FACE_5, FACE_68):
        assert KeypointSet.from_dict(s.to_dict()) == s
    assert len(FACE_68.names) == len(set(FACE_68.names)) == 68


def test_a_constant_offset_is_separated_from_the_error():
    rng = np.random.default_rng(0)
    true = np.array([[30.0, 30], [50, 30], [40, 45], [33, 55], [47, 55]]) + rng.uniform(-1, 1, (50, 5, 2))
    predicted = true + rng.normal(0, 0.1, true.shape)
    plain, shifted = (make_evaluation(p, true).summary() for p in (predicted, predicted + [1.0, -0.4]))
    scale = 20  # about the eye distance
    assert shifted["offset"] == pytest.approx([100 / scale, -40 / scale], rel=0.15)
    assert shifted["nme"] > 3 * plain["nme"]
    assert shifted["nme_without_offset"] == pytest.approx(plain["nme"], rel=0.1)


def test_an_offset_of_the_files_numbers_is_the_same_for_small_and_large_faces():
    rng = np.random.default_rng(0)
    true = np.array([[30.0, 30], [50, 30], [40, 45], [33, 55], [47, 55]]) + rng.uniform(-1, 1, (80, 5, 2))
    pixels = np.linspace(0.5, 4, 80)  # small faces first
    shift = np.array([1.0, -0.4])
    summary = make_evaluation(true + shift / pixels[:, None, None], true, file_pixels=pixels).summary()
    for quarter in ("small", "large"):
        assert summary[f"offset_file_pixels_{quarter}_quarter"] == pytest.approx(shift)
    habit = make_evaluation(true + shift, true, file_pixels=pixels).summary()
    ratio = [habit[f"{what}_file_pixels_{q}_quarter"] for q in ("small", "large") for what in ("normaliser",)]
    x = [habit[f"offset_file_pixels_{q}_quarter"][0] for q in ("small", "large")]
    assert x[1] / x[0] == pytest.approx(ratio[1] / ratio[0], rel=0.05) and x[1] > 2 * x[0]


def test_files_are_readable_by_whom_the_mask_allows(tmp_path):
    from recombinator.utils.files import write_atomically

    def private(path):
        path.write_text("x")
        path.chmod(0o600)

    write_atomically(tmp_path / "a", private)
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
