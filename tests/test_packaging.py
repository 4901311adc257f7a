"""The conda recipe asks for what pyproject.toml asks for."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import quadmodel as qm
from tests.cli.command import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "packaging" / "conda" / "meta.yaml"
CALLED_ON_CONDA = {"matplotlib": "matplotlib-base", "lazy-loader": "lazy_loader"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def recipe():
    jinja2 = pytest.importorskip("jinja2")
    yaml = pytest.importorskip("yaml")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(
        RECIPE.read_text("utf-8")
    )
    # conda-build and conda-forge's pinning set these two.
    return yaml.safe_load(template.render(PYTHON="python", python_min="3.11"))


def split(requirement):
    """Return name and bounds of a requirement, as either file writes it."""
    name, bounds = re.fullmatch(r"([\w.-]+)\s*(.*)", requirement).groups()
    return CALLED_ON_CONDA.get(name, name), bounds


def test_the_recipe_needs_what_the_project_needs(project, recipe):
    expected = dict(map(split, project["project"]["dependencies"]))
    expected["python"] = project["project"]["requires-python"]
    assert dict(map(split, recipe["requirements"]["run"])) == expected


def test_the_recipe_builds_with_what_the_project_builds_with(project, recipe):
    host = dict(map(split, recipe["requirements"]["host"]))
    assert host.keys() == {"python", "pip", "hatchling"}
    assert host | dict(map(split, project["build-system"]["requires"])) == host


def test_the_recipe_is_of_this_version_with_its_command_and_license(project, recipe):
    assert recipe["package"] == {"name": "quadmodel", "version": qm.__version__}
    assert recipe["source"]["path"].endswith(f"/quadmodel-{qm.__version__}.tar.gz")
    (entry,) = recipe["build"]["entry_points"]
    name, target = (part.strip() for part in entry.split("="))
    assert project["project"]["scripts"] == {name: target}
    assert recipe["about"]["license"] == project["project"]["license"]
    assert (ROOT / recipe["about"]["license_file"]).is_file()


def test_the_recipes_commands_run_outside_a_checkout(recipe, tmp_path):
    called = [command.split() for command in recipe["test"]["commands"]]
    # Checking derivations is not among them: they stand in the checkout alone.
    assert [arguments[1] for arguments in called] == ["--version", "explore", "validate", "check"]
    for name, *arguments in called[:2]:
        assert name == "quadmodel"
        program = [sys.executable, "-c", "from quadmodel.cli import main; main()", *arguments]
        subprocess.run(program, cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    assert (tmp_path / "explorer.html").stat().st_size > 10_000
