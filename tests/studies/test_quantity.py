"""The study `quantity`."""

from tests import toy_plugins  # noqa: F401
from tests.studies.helpers import study


def test_a_number_takes_each_value(setting):
    one = study(
        "quantity:defense=(toy-jitter:sigma=1),field=sigma,values=0+0.5+8,builds=2,attack=noise"
    )
    assert one.specs() == ("toy-jitter:sigma=0", "toy-jitter:sigma=0.5", "toy-jitter:sigma=8")
    result = one.run(setting)
    table = result.tables["quantity"]
    assert (
        table["sigma"].tolist() == [0, 0.5, 8]
        and table["robust"].is_monotonic_decreasing
        and table["robust"].iloc[0] > 0.9
    )
    assert table["lower"].tolist()[1:] == [2, 2] and "defense" not in table
    assert set(result.figures) == {"quantity"} and result.sentence.startswith(
        "Robust accuracy in percent by sigma: "
    )
    assert (
        study("quantity").specs()[1]
        == "datafreeshield:batch=50,epochs=10,group=2,images=250,iterations=150,synthesis_batch=50"
    )
