import numpy as np
import pytest

from sam3_lora.coco.schema import Category, CocoDataset
from sam3_lora.config import DatasetOptions
from sam3_lora.data.concepts import default_text, find_concepts, shared_concepts, training_queries


def dataset(*names: str) -> CocoDataset:
    return CocoDataset(categories={i: Category(i, name) for i, name in enumerate(names, start=1)})


def queries(concepts, kept, annotated, seed: int = 0, **options: object):
    return training_queries(
        concepts,
        kept=kept,
        annotated=frozenset(annotated),
        options=DatasetOptions(**options),
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize(("name", "text"), [("fire_truck", "fire truck"), ("a--b", "a b"), ("  Cat ", "Cat")])
def test_default_text(name: str, text: str):
    assert default_text(name) == text


def test_same_text_in_any_case_is_one_concept():
    concepts = find_concepts(dataset("CRACKS", "cracks", "hole"), {})
    assert [(c.texts, c.category_ids) for c in concepts] == [(("CRACKS",), (1, 2)), (("hole",), (3,))]
    found = queries(concepts, kept=[2, 1, 2], annotated={1, 2})
    assert found[0].objects == (0, 1, 2)
    assert not any(q.text.lower() == "cracks" for q in found[1:])


def test_explicit_prompts_and_synonyms():
    concepts = find_concepts(dataset("prod-17", "x"), {"prod-17": ["pallet", "wooden pallet"]})
    assert concepts[0].texts == ("pallet", "wooden pallet")
    asked = {queries(concepts, [1], {1}, seed=s)[0].text for s in range(20)}
    assert asked == {"pallet", "wooden pallet"}


def test_positives_map_category_to_its_objects_and_absent_ones_are_negatives():
    found = queries(find_concepts(dataset("a", "b", "c"), {}), kept=[2, 1, 2], annotated={1, 2})
    assert [(q.text, q.objects) for q in found] == [("a", (1,)), ("b", (0, 2)), ("c", ())]


def test_lost_or_crowd_objects_do_not_turn_their_query_into_a_negative():
    found = queries(find_concepts(dataset("a", "b"), {}), kept=[], annotated={1})
    assert [q.text for q in found] == ["b"]


def test_image_without_annotations_has_only_negatives():
    found = queries(find_concepts(dataset("a", "b"), {}), kept=[], annotated=set())
    assert {q.text for q in found} == {"a", "b"}
    assert all(q.objects == () for q in found)


def test_incomplete_annotation_teaches_no_absence():
    found = queries(find_concepts(dataset("a", "b"), {}), kept=[1], annotated={1}, exhaustive=False)
    assert [(q.text, q.exhaustive) for q in found] == [("a", False)]


def test_caps_keep_positives():
    concepts = find_concepts(dataset(*(f"c{i}" for i in range(40))), {})
    found = queries(concepts, kept=[3, 7, 9], annotated={3, 7, 9}, max_queries_per_image=5, negatives_per_image=20)
    assert [q.text for q in found[:3]] == ["c2", "c6", "c8"]
    assert len(found) == 5
    crowded = queries(concepts, kept=list(range(1, 41)), annotated=set(range(1, 41)), max_queries_per_image=5)
    assert len(crowded) == 5
    assert all(q.objects for q in crowded)


def test_negatives_are_drawn_by_the_generator_alone():
    concepts = find_concepts(dataset(*(f"c{i}" for i in range(40))), {})
    first, again, other = (queries(concepts, [1], {1}, seed=s, negatives_per_image=4) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_several_models_are_asked_for_the_same_concepts_each_in_its_own_words():
    own = {"b": "steel bolt", "c": "Steel  Bolt"}
    first, second = shared_concepts(dataset("a", "b", "c", "A"), [own, {}])
    assert [c.texts for c in first] == [("a",), ("steel bolt",), ("Steel Bolt",)]
    assert [c.texts for c in second] == [("a",), ("b",), ("c",)]
    assert [(c.number, c.name, c.category_ids) for c in first] == [(1, "a", (1, 4)), (2, "b", (2,)), (3, "c", (3,))]
    assert [(c.number, c.name, c.category_ids) for c in second] == [(c.number, c.name, c.category_ids) for c in first]
    (alone,) = shared_concepts(dataset("a", "b", "c", "A"), [own])
    assert alone == find_concepts(dataset("a", "b", "c", "A"), {name: [text] for name, text in own.items()})
