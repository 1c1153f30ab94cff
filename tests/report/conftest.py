"""Runs and their pages, made once for all tests of reports."""

import shutil

import pytest
from report_cases import described_study, simulate, train, write_hostile

from firstlight.compare import compare
from firstlight.report import report


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copied(run, tmp_path):
    """The run, to be damaged."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="session")
def comparison(simulated, tmp_path_factory):
    return compare(simulated, out=tmp_path_factory.mktemp("out") / "effects", draws=50)


@pytest.fixture
def study(simulated, tmp_path):
    return described_study(tmp_path / "study", simulated)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    return write_hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def run_page(run, tmp_path_factory):
    return report([run], tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="session")
def comparison_page(comparison, tmp_path_factory):
    return report([comparison], tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="session")
def study_page(simulated, tmp_path_factory):
    return report([described_study(tmp_path_factory.mktemp("study"), simulated)])


@pytest.fixture(scope="session")
def hostile_page(hostile, tmp_path_factory):
    return report([hostile[0]], tmp_path_factory.mktemp("page") / "page.html")
