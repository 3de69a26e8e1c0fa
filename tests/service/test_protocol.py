"""docs/protocol.md says what the code and the database do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from service.shared.settings import Settings
from service.shared.states import ACTIONS, DATASET_MOVES, INITIAL, JOB_MOVES

if TYPE_CHECKING:
    from service.shared.unit_of_work import Database

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
PATH = re.compile(r"`((?:service|worker|tests)/[\w/.]+)`")


def table(header: str) -> list[list[str]]:
    """Cells of the rows of the table that begins with this line."""
    lines = PAGE.split(f"{header}\n", 1)[1].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in lines[: lines.index("")]]


def names(cell: str) -> set[str]:
    return {name.strip(" `") for name in cell.split(",")}


def moves(rows: list[list[str]]) -> dict[tuple[str, str], set[str]]:
    found = {(old.strip("`"), new.strip("`")): names(by) for old, new, by, *_ in rows}
    assert len(found) == len(rows)
    return found


def triggers_of(database: Database, table_name: str) -> str:
    """What guards the states of a table, as the database has it."""
    with database.read() as unit:
        if database.engine.dialect.name == "postgresql":
            function = text("SELECT pg_get_functiondef(CAST(:name AS regproc))")
            return str(unit.session.scalar(function, {"name": f"guard_{table_name}_state"}))
        query = text("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :name")
        return "\n".join(unit.session.scalars(query, {"name": table_name}))


def test_the_tables_of_moves_are_those_of_the_code() -> None:
    assert moves(table("| from | to | by | when |")) == {move: set(map(str, by)) for move, by in JOB_MOVES.items()}
    assert moves(table("| from | to | by |")) == {move: set(map(str, by)) for move, by in DATASET_MOVES.items()}


def test_the_table_of_actions_is_that_of_the_code() -> None:
    found = {action.strip("`"): names(states) for action, states, _ in table("| action | states | effect |")}
    assert found == {str(action): set(map(str, states)) for action, states in ACTIONS.items()}


def test_the_diagram_shows_these_moves_and_no_others() -> None:
    arrows = re.findall(r"^    (\S+) --> (\w+)", PAGE, re.MULTILINE)
    assert sorted(arrows) == sorted([*JOB_MOVES, *(("[*]", state) for state in INITIAL)])


@pytest.mark.parametrize(
    ("name", "header"), [("jobs", "| from | to | by | when |"), ("datasets", "| from | to | by |")]
)
def test_triggers_of_the_database_let_these_moves_pass_and_no_others(
    database: Database, name: str, header: str
) -> None:
    guarded = re.findall(r"'(\w+)>(\w+)'", triggers_of(database, name))
    assert sorted(guarded) == sorted(moves(table(header)))


def test_settings_and_files_that_are_named_exist() -> None:
    settings = set(re.findall(r"`(\w+_s)`", PAGE))
    assert len(settings) > 5
    assert settings <= set(Settings.model_fields)
    paths = PATH.findall(PAGE)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
