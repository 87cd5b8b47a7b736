"""What a run depends on: each file that its data name has a fingerprint, which follows its content."""

from cal_cli.toy.world import make_scenes
from cal_cli.training.record import identify_data


def test_every_file_of_the_data_has_a_fingerprint(tmp_path):
    node = {}
    for key in ("path", "rows", "weights"):
        (tmp_path / key).write_text(key)
        node[key] = str(tmp_path / key)
    before = identify_data(node, make_scenes(n=1))
    assert set(before) == {"data.path", "data.rows", "data.weights", "images"}
    (tmp_path / "weights").write_text("others")
    after = identify_data(node, make_scenes(n=1))
    assert [key for key in before if before[key] != after[key]] == ["data.weights"]
