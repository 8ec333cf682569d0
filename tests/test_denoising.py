"""Shape models, prediction of corrupted points, and repair of given points."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.points import read_points
from recombinator.data.table import load_table
from recombinator.evaluation.denoising import errors_of_baselines, evaluate_denoiser
from recombinator.keypoints import FACE_5, FACE_68
from recombinator.models import create_model
from recombinator.models.denoiser import BLANK, PointDenoiser, newton_inverse, solve_positive
from recombinator.predict.repair import repair
from recombinator.training.run import train
from recombinator.transforms.samples import corrupted, corrupted_table
from recombinator.transforms.shapes import ShapeModel, apply_similarity, similarity
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, load_weights, save_weights

RNG = np.random.default_rng(0)


def some_shapes(n=40, k=9, modes=3):
    """Shapes of a linear family, each turned, scaled and shifted."""
    mean, axes = RNG.normal(size=(k, 2)), 0.1 * RNG.normal(size=(modes, k, 2))
    flat = mean + np.einsum("nm,mki->nki", RNG.normal(size=(n, modes)), axes)
    angle, scale = RNG.uniform(-0.5, 0.5, n), RNG.uniform(5, 20, n)
    linear = scale[:, None, None] * np.stack(
        [np.stack([np.cos(angle), -np.sin(angle)], 1), np.stack([np.sin(angle), np.cos(angle)], 1)], 1
    )
    return apply_similarity(flat, linear, RNG.uniform(20, 60, (n, 2)))


def test_similarity_is_recovered_and_points_without_weight_are_ignored():
    shape = RNG.normal(size=(9, 2))
    linear, shift = np.array([[[3.0, -1.0], [1.0, 3.0]]]), np.array([[5.0, -2.0]])
    points, weight = apply_similarity(shape, linear, shift), np.ones((1, 9))
    points[0, 4], weight[0, 4] = 1e4, 0
    estimate = similarity(shape, points, weight)
    np.testing.assert_allclose(estimate[0], linear, atol=1e-9)
    np.testing.assert_allclose(estimate[1], shift, atol=1e-9)
    with pytest.raises(ValueError, match="positive weight"):
        similarity(shape, points, 0 * weight)


def test_linear_model_completes_what_the_mean_shape_cannot():
    points = some_shapes(200)
    known = RNG.random((200, 9)) < 0.7
    known[:, :5] = True
    given = np.where(known[..., None], points, 0.0)
    errors = {}
    for modes in (0, 3):
        model = ShapeModel.fit(points, np.ones((200, 9), bool), modes)
        errors[modes] = np.linalg.norm(model.complete(given, known, rounds=30) - points, axis=2)[~known].mean()
    assert errors[3] < 0.2 * errors[0]


def test_missing_points_do_not_move_the_model():
    points = some_shapes(100)
    mask = RNG.random((100, 9)) < 0.9
    whole = ShapeModel.fit(points, np.ones_like(mask), 0).mean
    partial = ShapeModel.fit(np.where(mask[..., None], points, 1e6), mask, 0).mean
    fitted = apply_similarity(partial, *similarity(partial, whole[None], np.ones((1, 9))))[0]
    assert np.abs(fitted - whole).max() < 0.05


@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_products_alone_invert_as_well_as_the_solver(spread):
    torch.manual_seed(0)
    a = torch.randn(4, 7, 12) * torch.logspace(0, np.log10(spread), 7)[:, None]
    matrix, right = a @ a.transpose(1, 2) + 1e-4 * torch.eye(7), torch.randn(4, 7)
    wanted = solve_positive(matrix, right)
    torch.testing.assert_close((newton_inverse(matrix) @ right[..., None])[..., 0], wanted, rtol=1e-3, atol=1e-3)


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    net = PointDenoiser(5, size=24, width=16, layers=2, heads=2, modes=3)
    net.initialize(some_shapes(50, 5), np.ones((50, 5), bool))
    return net.eval()


def test_scores_are_the_log_likelihood_and_sum_to_one_on_a_wide_enough_map(denoiser):
    cells = torch.randint(6, 18, (3, 5, 2))
    cells[0, 1], cells[2, 0] = BLANK, BLANK
    scores = denoiser(cells)
    assert scores.shape == (3, 5, 24, 24)
    at = torch.randint(0, 24, (3, 5, 2))
    picked = scores[torch.arange(3)[:, None], torch.arange(5), at[..., 1], at[..., 0]]
    torch.testing.assert_close(picked, denoiser.log_likelihood(cells, at + 0.5), atol=1e-4, rtol=1e-4)
    total = scores.exp().sum((2, 3))
    assert (total < 1.2).all() and (total > 0.05).all()
    with pytest.raises(InputError, match="expected"):
        denoiser(cells[:, :4])


def test_answers_follow_a_turn_of_the_points(denoiser):
    cells = torch.randint(4, 20, (2, 5, 2))
    turned = torch.stack([23 - cells[..., 1], cells[..., 0]], dim=-1)  # a quarter turn of the map
    _, mean, inverse, _ = denoiser.mixture(cells)
    share, other, same, _ = denoiser.mixture(turned)
    torch.testing.assert_close(other, torch.stack([-mean[..., 1], mean[..., 0]], dim=-1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(same, inverse, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(share, denoiser.mixture(cells)[0], atol=1e-3, rtol=1e-3)


def test_corrupted_moves_so_many_points_and_only_those():
    cells = torch.randint(0, 24, (6, 9, 2))
    given, changed = corrupted(cells, 4, 24, torch.Generator().manual_seed(0))
    assert (changed.sum(1) == 4).all() and (given[~changed] == cells[~changed]).all()


def test_baselines_see_the_same_corruption_and_only_uncorrupted_points(faces68):
    tables = {s: load_table(faces68 / f"{s}.parquet") for s in ("train", "valid", "test")}
    baselines = errors_of_baselines(tables["test"], tables["train"], tables["valid"], 80, 35)
    assert set(baselines) >= {"mean shape"} and len(baselines) == 2
    mean = baselines["mean shape"][0]
    little = errors_of_baselines(tables["test"], tables["train"], tables["valid"], 80, 1)["mean shape"][0]
    assert 0 < np.nanmean(little) < 0.5 and 0 < np.nanmean(mean) < 0.5
    points, _, given, changed = corrupted_table(tables["test"], 80, 35)
    np.testing.assert_array_equal(given[~changed], np.clip(np.floor(points), 0, 79)[~changed])


@pytest.fixture(scope="module")
def trained(faces68, tmp_path_factory):
    """A denoiser trained briefly on synthetic faces."""
    out = tmp_path_factory.mktemp("run")
    options = {"width": 32, "layers": 2, "modes": 12}
    kind = {"options": options, "learning_rate": 2e-3, "batch": 8}
    train("denoiser-lite", faces68, out, epochs=30, **kind)
    return out / "best.safetensors"


def test_evaluation_of_a_denoiser(trained, faces68, tmp_path):
    report = evaluate_denoiser(trained, faces68 / "test.parquet")
    rows = report["rows"]
    assert list(rows)[:2] == ["denoiser", "mean shape"] and len(rows) == 3
    assert rows["denoiser"]["nme_paper"] < 60  # a uniform guess is far over 100 % of the eye distance away
    out = CliRunner().invoke(
        app, ["evaluate", str(trained), "--data", str(faces68 / "test.parquet"), "--json", str(tmp_path / "a.json")]
    )
    assert out.exit_code == 0 and "mean shape" in out.output
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == rows
    with pytest.raises(InputError, match="expected the weights of a denoiser"):
        evaluate_denoiser("rcn-6-mtfl", faces68 / "test.parquet")


def test_repair_corrects_a_wrong_point_in_any_frame(trained, faces68):
    weights = load_weights(trained)
    table = load_table(faces68 / "test.parquet")
    points = table.points[0].astype(float)
    eyes = FACE_68.scale(points)
    wrong = points.copy()
    wrong[30] += 1.5 * eyes
    wrong[8] = np.nan
    repaired = repair(weights, wrong)
    assert np.linalg.norm(repaired.points[30] - points[30]) < 0.5 * np.linalg.norm(wrong[30] - points[30])
    assert np.isinf(repaired.implausible[8]) and np.isnan(repaired.moved[8]) and np.isfinite(repaired.points).all()
    assert repaired.implausible[30] > np.median(repaired.implausible)
    far = repair(weights, wrong * 7 + [1000, -300])
    np.testing.assert_allclose(far.points, repaired.points * 7 + [1000, -300], atol=7 * 0.1 * eyes)
    for astray in ([0.0, 0.0], [99999.0, 99999.0]):  # a sentinel, a slip of the decimal point
        gross = wrong.copy()
        gross[30] = astray
        np.testing.assert_allclose(repair(weights, gross).points, repaired.points, atol=0.35 * eyes)
    kept = repair(weights, wrong, keep_below=1e9)
    np.testing.assert_array_equal(kept.points[kept.kept], wrong[kept.kept])
    assert kept.kept.sum() == 67
    for bad, what in (
        (points[:67], "expected points"), (np.full((68, 2), np.nan), "3 or more known points"),
        (np.ones((68, 2)), "coincide"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=what):
            repair(weights, bad)


def write_all_forms(folder, points, name=FACE_68):
    """The same face in each form that is read."""
    rows = [("a.jpg", 1, n, x, y) for n, (x, y) in zip(name.names, points, strict=True)]
    (folder / "long.csv").write_text("file,face,keypoint,x,y\n" + "\n".join(",".join(map(str, r)) for r in rows))
    (folder / "numbered.csv").write_text(
        "keypoint,x,y\n" + "\n".join(f"{i},{x},{y}" for i, (x, y) in reversed(list(enumerate(points, 1))))
    )
    k = len(points)
    head = ["file", *(f"x{i}" for i in range(1, k + 1)), *(f"y{i}" for i in range(1, k + 1))]
    values = ["a.jpg", *points[:, 0], *points[:, 1]]
    (folder / "wide.csv").write_text(",".join(head) + "\n" + ",".join(map(str, values)) + "\n")
    coco = [v for x, y in points.tolist() for v in (x - 0.5, y - 0.5, 2)]  # a pixel's center is whole there
    plain = [{"name": n, "x": x, "y": y} for n, (x, y) in zip(name.names, points.tolist(), strict=True)]
    forms = {
        "report.json": {"photographs": [{"file": "a.jpg", "faces": [{"keypoints": plain}]}]},
        "list.json": [{"file": "a.jpg", "points": points.tolist()}],
        "coco.json": {
            "images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "keypoints": coco}],
        },
    }  # fmt: skip
    for file, value in forms.items():
        (folder / file).write_text(json.dumps(value))
    (folder / "lines.jsonl").write_text(json.dumps(forms["list.json"][0]) + "\n\n")
    (folder / "one.pts").write_text("\n".join(f"{x + 1} {y + 1}" for x, y in points))
    return sorted(p for p in folder.iterdir() if p.is_file())


def test_every_form_of_points_is_read(tmp_path, faces68):
    points = load_table(faces68 / "test.parquet").points[0].astype(float)
    forms = write_all_forms(tmp_path, points)
    assert len(forms) == 8
    for path in forms:
        (found,) = read_points(path, FACE_68, drop=lambda error: pytest.fail(str(error)))
        np.testing.assert_allclose(found.points, points, err_msg=str(path))
        assert found.file == {"numbered.csv": "", "one.pts": "one.pts"}.get(path.name, "a.jpg")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "keypoint,x,y\near,1,2\n", "a.csv:2: unknown keypoint 'ear'"),
        ("a.csv", "keypoint,x,y\nnose,1,2\nnose,1,2\n", "a.csv:3: keypoint nose occurs twice"),
        ("a.csv", "x1,x2,y1,y2\n1,2,3,4\n", "a.csv:2: expected 5 keypoints (face-5), got 2"),
        ("a.csv", "x1,x2,x3,x4,x5,y1,y2,y3,y4,y5,yaw\n", "got yaw"),
        ("a.csv", "x1,x2,x3,x4,x5,y1,y2,y3,y4,y5\n1,2,3,4,5,6,7,8,b,0\n", "a.csv:2: 'b' is not a number"),
        ("a.json", '[{"points": [[1, 2]]}]', "entry 1: expected 5 keypoints (face-5), got 1"),
        ("a.json", '[{"where": 1}]', "expected `points`"),
        ("a.json", '[{\n"where": }]', "a.json:2: not JSON"),
        ("a.jsonl", '\n\n{"points": \n', "a.jsonl:3: not JSON"),
        ("a.csv", "keypoint,x,y\n\u00b2,1,2\n", "unknown keypoint"),
        ("a.pts", "1 2\n", "expected 5 keypoints (face-5), got 1"),
        ("a.txt", "", "unknown points format"),
    ],
)
def test_points_that_cannot_be_read_name_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    errors = []
    try:
        assert not read_points(tmp_path / name, FACE_5, errors.append)
    except InputError as error:
        errors.append(error)
    assert message in str(errors[0])


def test_denoise_command(trained, faces68, tmp_path):
    points = load_table(faces68 / "test.parquet").points[:2].astype(float)
    points[1, 20] += 60
    broken = points[0].tolist()[:60]
    faces = (("a", points[0].tolist()), ("b", broken), ("c", points[1].tolist()))
    (tmp_path / "in.json").write_text(json.dumps([{"file": f, "points": p} for f, p in faces]))
    command = ["denoise", str(tmp_path / "in.json"), "--weights", str(trained), "--out"]
    run = CliRunner().invoke(app, [*command, str(tmp_path / "out.json")])
    assert run.exit_code == 0 and "2 faces, 1 dropped" in run.output
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [r["file"] for r in rows[::68]] == ["a", "c"] and len(rows) == 136
    worst = max(rows, key=lambda r: r["implausible"])
    assert (worst["file"], worst["keypoint"]) == ("c", FACE_68.names[20]) and not worst["kept"]
    assert CliRunner().invoke(app, [*command, str(tmp_path / "out.csv")]).exit_code == 0
    assert (tmp_path / "out.csv").read_text().startswith("file,face,keypoint,x,y,moved,implausible,kept\na,1,jaw_1,")
    for extra, message in (
        ([str(tmp_path / "in.json")], "overwrite"), ([str(tmp_path / "o.xml")], "must end in .csv or .json"),
        ([str(tmp_path / "s.csv"), "--strict"], "expected 68 keypoints (face-68), got 60"),
    ):  # fmt: skip
        run = CliRunner().invoke(app, [*command, *extra])
        assert isinstance(run.exception, InputError) and message in str(run.exception)
    assert not (tmp_path / "s.csv").exists()


def test_learning_a_networks_own_errors(faces68, tmp_path):
    torch.manual_seed(0)
    teacher = create_model("rcn-68", width=0.1).eval()
    save_weights(tmp_path / "teacher.safetensors", Weights(teacher, FACE_68, "300w", [[0.5, 0.5]] * 68, {}))
    kind = {"batch": 8, "options": {"width": 16, "layers": 1, "modes": 4}}
    out = tmp_path / "mixed"
    result = train("denoiser-lite", faces68, out, epochs=2, corruption="mixed", judged="all",
                   errors_of=tmp_path / "teacher.safetensors", **kind)  # fmt: skip
    assert result["epochs"] == 2 and np.isfinite(result["best_valid"])
    assert train("denoiser-lite", faces68, out, epochs=3, resume=True, **kind)["epochs"] == 3
    torch.manual_seed(0)
    save_weights(tmp_path / "tcdcn.safetensors", Weights(create_model("tcdcn-alone", 68), FACE_68, "300w", [], {}))
    with pytest.raises(InputError, match="expected the weights of a network with score maps"):
        train("denoiser-lite", faces68, tmp_path / "no", epochs=1, errors_of=tmp_path / "tcdcn.safetensors", **kind)
    for changes in ({"corruption": "mixed"}, {"errors_of": tmp_path / "teacher.safetensors"}):
        with pytest.raises(InputError, match="'mixed' needs errors_of"):
            train("denoiser-lite", faces68, tmp_path / "no", epochs=1, **kind, **changes)


def test_few_points_few_faces_and_a_start_from_weights(faces5, faces68, tmp_path):
    kind = {"batch": 8, "learning_rate": 0.0}
    train("denoiser-lite", faces5, tmp_path / "five", epochs=1, corrupt=2, **kind)
    with pytest.raises(InputError, match="35 corrupted of 5 points"):
        evaluate_denoiser(tmp_path / "five", faces5 / "test.parquet")
    small = {"options": {"width": 16, "layers": 1, "modes": 4}}
    train("denoiser-lite", faces68, tmp_path / "a", epochs=1, limit=12, **small, **kind)
    train("denoiser-lite", faces68, tmp_path / "b", epochs=1, start=tmp_path / "a", seed=1, **small, **kind)
    a, b = (load_weights(tmp_path / n).net.state_dict() for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)  # a rate of zero: what was started from is still there
