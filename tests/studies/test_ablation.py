"""The study `ablation`."""

from tests.studies.helpers import study


def test_an_ablation_of_equal_variants_finds_nothing(setting):
    result = study(
        "ablation:defenses=undefended+undefended+(bit-depth:bits=8),builds=2,attack=(bpda:steps=3)"
    ).run(setting)
    table = result.tables["ablation"]
    assert table["difference"].tolist()[1:] == [0, 0] and table["lower"].tolist()[1:] == [0, 0]
    assert (table["difference_low"].iloc[1:] <= 0).all() and (
        table["difference_high"].iloc[1:] >= 0
    ).all()
    assert result.tables["builds"]["p"].iloc[2:].eq(1).all() and len(result.tables["builds"]) == 6
    assert result.scale == "2 builds of 3 defenses, 30 images, bpda:steps=3" and set(
        result.figures
    ) == {"ablation"}
    assert "undefended has" in result.sentence and "bit-depth" in result.sentence
