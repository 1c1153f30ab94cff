"""Levels of the tree of life; the expected groups are written out by hand."""

import published_trees as published
import pytest

from firstlight.datamodules.taxonomy import (
    RANKS,
    groups_above,
    levels_of,
    lineage_of_category,
    lineage_of_folder,
    taxa,
)

FOLDERS = [f"{i:05d}_{line.replace(' ', '_')}" for i, (_, line, _) in enumerate(published.SPECIES)]
LINEAGES = [lineage_of_folder(name) for name in FOLDERS]


def test_a_folder_of_2021_names_all_ranks():
    assert LINEAGES[0] == {
        "kingdom": "Animalia", "phylum": "Chordata", "class": "Aves", "order": "Suliformes",
        "family": "Sulidae", "genus": "Morus", "species": "Morus bassanus",
    }  # fmt: skip
    assert lineage_of_folder("09999_A_B_C_D_E_F_x_y")["species"] == "F x y"
    with pytest.raises(ValueError, match="'tench' is not named as in iNaturalist 2021"):
        lineage_of_folder("tench")


def test_two_genera_of_one_name_stay_two():
    numbers, names = taxa(LINEAGES, "genus")
    assert numbers == [1, 2, 0]
    assert names == [
        "Ficus",
        "Morus (Animalia > Chordata > Aves > Suliformes > Sulidae)",
        "Morus (Plantae > Tracheophyta > Magnoliopsida > Rosales > Moraceae)",
    ]


def test_levels_by_hand():
    assert taxa(LINEAGES, "kingdom") == ([0, 1, 1], ["Animalia", "Plantae"])
    assert taxa(LINEAGES, "family") == ([1, 0, 0], ["Moraceae", "Sulidae"])
    assert taxa(LINEAGES, "species") == (
        [0, 1, 2],
        ["Morus bassanus", "Morus alba", "Ficus carica"],
    )
    with pytest.raises(ValueError, match=r"one of \['kingdom', .*'species'\].*'supercategory'"):
        taxa(LINEAGES, "supercategory")


def test_species_of_one_name_stay_apart():
    same = [{"species": "x"}, {"species": "x"}, {"species": "y"}]
    assert taxa(same, "species") == ([0, 1, 2], ["x (0)", "x (1)", "y"])


def test_categories_tell_what_they_have():
    with_ranks = [lineage_of_category(c) for c in published.inat_categories(ranks=True)]
    assert levels_of(with_ranks) == [*RANKS, "supercategory"]
    without = [lineage_of_category(c) for c in published.inat_categories(ranks=False)]
    assert levels_of(without) == ["species", "supercategory"]
    assert taxa(without, "supercategory") == ([0, 1, 1], ["Aves", "Plantae"])


def test_groups_are_the_levels_that_contain_whole_classes():
    groups = groups_above(LINEAGES, [0, 1, 2])
    assert groups["kingdom"] == ["Animalia", "Plantae", "Plantae"]
    assert groups["family"] == ["Sulidae", "Moraceae", "Moraceae"]
    assert "genus" not in groups  # as many as there are species: no groups
    of_families = groups_above(LINEAGES, taxa(LINEAGES, "family").numbers)
    assert of_families == {}  # two families in two kingdoms
    divided = [{**line, "supercategory": s} for line, s in zip(LINEAGES, "aab", strict=True)]
    assert "supercategory" not in groups_above(divided, taxa(LINEAGES, "family").numbers)
