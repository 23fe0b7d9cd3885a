"""What a description says, in fields; and what it says that nobody understands."""

from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.record.description import Detail, attributes, details
from tests.looped import looped

ROLLOUT = "Updated Rule test rollout from 100.00% to 10.00%"
PERCENTAGE = "Updated rule test pass percentage from 100 to 50"


@looped(
    ("line", "detail"),
    [
        (ROLLOUT, Detail("rule_rollout", "test", 100.0, 10.0)),
        (PERCENTAGE, Detail("rule_pass_percentage", "test", 100.0, 50.0)),
        ("Updated rule 0.5 pass percentage from 0 to 0.05", Detail("rule_pass_percentage", "0.5", 0.0, 0.05)),
        (
            "Updated Rule a rollout from 1% to 2% rollout from 3% to 4%",
            Detail("rule_rollout", "a rollout from 1% to 2%", 3.0, 4.0),
        ),
        ("Added rule Rule 1", Detail("rule_added", "Rule 1")),
        ("Removed rule é, ü", Detail("rule_removed", "é, ü")),
        ("Deleted rule rule", Detail("rule_deleted", "rule")),
        ("Groups updated: control, test", Detail("groups_updated", names=("control", "test"))),
        ("Groups added: one", Detail("groups_added", names=("one",))),
        ("Groups removed: one,,two ,", Detail("groups_removed", names=("one", "two"))),
        ("Parameters added: heading", Detail("parameters_added", names=("heading",))),
        ("Parameters updated: a, b", Detail("parameters_updated", names=("a", "b"))),
        ("Parameters removed: a", Detail("parameters_removed", names=("a",))),
    ],
)
def test_a_line(line: str, detail: Detail) -> None:
    for written in (
        line,
        f"    - {line}",
        f"{line}  ",
        line.lower().replace("rule 1", "Rule 1"),
        f"Created\n-{line}\nx",
    ):
        assert list(details(written)) == [detail]


@looped(
    "line",
    [
        "",
        "-",
        "a_description",
        "Created Gate",
        "Updated Config Conditions",
        "Description: Added rule x",
        "Updated rule test",
        "Updated rule test pass percentage from 100",
        "Updated rule test pass percentage from a to b",
        "Updated rule test pass percentage from -1 to 2",
        "Updated rule test pass percentage from 1 to 2 and more",
        "Updated rule test pass percentage from ٣ to ٤",
        "Updated rule test pass percentage from 1000000000 to 1",
        "Updated rule rollout from 1 to 2",
        "Added rule",
        "Added rule ",
        "Groups updated",
        "Groups updated:",
    ],
)
def test_what_is_not_recognised_is_left_alone(line: str) -> None:
    assert attributes(line) == {}
    assert list(details(f"{line}\n{ROLLOUT}")) == [Detail("rule_rollout", "test", 100.0, 10.0)]


def test_one_change() -> None:
    assert attributes(f"Updated Config Conditions\n    - {PERCENTAGE}") == {
        "statsig.change.kind": "rule_pass_percentage",
        "statsig.change.rule": "test",
        "statsig.change.from": 100.0,
        "statsig.change.to": 50.0,
        "statsig.change.kinds": ("rule_pass_percentage",),
        "statsig.change.rules": ("test",),
    }


def test_several_changes() -> None:
    """No single kind, rule or number would be true of them."""
    text = f"{PERCENTAGE}\nAdded rule a\nAdded rule b\nAdded rule a\n- Groups updated: x, y\n- Parameters added: p"
    assert attributes(text) == {
        "statsig.change.kinds": ("rule_pass_percentage", "rule_added", "groups_updated", "parameters_added"),
        "statsig.change.rules": ("test", "a", "b"),
        "statsig.change.groups": ("x", "y"),
        "statsig.change.parameters": ("p",),
    }


def test_numbers_are_fractions_always() -> None:
    """An attribute is of one type in all records."""
    assert type(attributes(PERCENTAGE)["statsig.change.to"]) is float


def test_a_long_description_takes_no_more_than_its_length() -> None:
    """Lines made to be tried again and again; that this ends is the test."""
    for line in (
        "updated rule " + " rollout from 1% to 2%" * 50_000 + "x",
        "-" * 1_000_000 + "x",
        "added rule \n" * 100_000,
    ):
        assert attributes(line) == {}


WORDS = st.sampled_from(
    (
        "Updated",
        "rule",
        "Added",
        "rollout",
        "from",
        "to",
        "1",
        "2.5%",
        "pass percentage",
        "Groups updated:",
        ",",
        "\n",
        "-",
    )
)


@given(st.text() | st.lists(WORDS, max_size=14).map(" ".join))
def test_it_never_fails(description: str) -> None:
    made = attributes(description)
    found = list(details(description))
    assert ("statsig.change.kind" in made) == (len(found) == 1)
    assert bool(found) == bool(made)
    assert all(value for value in made.values() if not isinstance(value, float))
