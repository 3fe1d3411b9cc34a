"""The manifest is the key: all of what matters, nothing of what does not, and no two meanings with one text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from rules import digest
from rules.action import Action, Files, Local, Output, key, manifest

BASE = Action(
    stage="engine",
    argv=("{python}", "tool.py", "--out={out}"),
    inputs=(("weights", Output(action="checkpoint:m")),),
    outputs=("*.bin",),
    toolchain=(("openvino", "1"),),
    platform="linux-x86_64",
    env=(("MODE", "a"),),
)
DIGESTS = {"weights": "11" * 32, "more": "22" * 32}

# Each field of Action has a line here: what it is changed to, and whether the key may stay.
KEYED: Mapping[str, Any] = {
    "stage": "checkpoint",
    "argv": ("{python}", "tool.py"),
    "inputs": (("more", Output(action="checkpoint:m")),),
    "outputs": ("*.xml",),
    "toolchain": (("openvino", "2"),),
    "platform": "linux-aarch64",
    "env": (("MODE", "b"),),
}
NOT_KEYED: Mapping[str, Any] = {
    "name": "engine:m",
    "gpus": 8,
    "timeout_s": 60.0,
    "sharing": "never",
    "runner": "docker",
    "warm": "trtllm",
    "passes": ("HF_TOKEN",),
}


def _key(action: Action) -> str:
    return key(manifest(action, DIGESTS))


def test_every_field_is_listed_as_keyed_or_not() -> None:
    assert {field.name for field in fields(Action)} == {*KEYED, *NOT_KEYED}
    assert not {*KEYED} & {*NOT_KEYED}


@pytest.mark.parametrize("field", sorted(KEYED))
def test_a_keyed_field_changes_the_key(field: str) -> None:
    assert _key(replace(BASE, **{field: KEYED[field]})) != _key(BASE)


@pytest.mark.parametrize("field", sorted(NOT_KEYED))
def test_an_unkeyed_field_keeps_the_key(field: str) -> None:
    changed = replace(BASE, **{field: NOT_KEYED[field]})
    assert changed != BASE, "the other value must differ"
    assert _key(changed) == _key(BASE)


def test_the_text_that_is_hashed_is_the_manifest() -> None:
    text = manifest(BASE, DIGESTS)
    assert key(text) == digest.of_text(text)


def test_the_manifest_reads_like_this() -> None:
    assert manifest(BASE, DIGESTS) == (
        "manifest 1\n"
        "stage engine\n"
        "arg {python}\n"
        "arg tool.py\n"
        "arg --out={out}\n"
        "env MODE=a\n"
        "toolchain openvino 1\n"
        "platform linux-x86_64\n"
        f"input weights {'11' * 32}\n"
        "output *.bin\n"
    )


ARGUMENTS = (
    (),
    ("",),
    ("", ""),
    ("a",),
    ("a b",),
    ("a", "b"),
    ("a\nb",),
    ("a\\nb",),
    ("a\\\nb",),
    ("a\\", "b"),
    ("a\narg b",),
    ("a", "arg b"),
    ("a\rb",),
    ("a\\rb",),
    ("a\r\nb",),
    (" a",),
    ("a ",),
    ("\n",),
    ("a\nenv X=1",),
    ("a\u2028b",),
    ("a\x85b",),
    ("模型",),
)


def test_two_argument_lists_never_give_one_text() -> None:
    texts = {manifest(replace(BASE, argv=arguments), DIGESTS): arguments for arguments in ARGUMENTS}
    assert list(texts.values()) == list(ARGUMENTS)


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_an_argument_is_one_line(arguments: tuple[str, ...]) -> None:
    text = manifest(replace(BASE, argv=arguments), DIGESTS)
    assert len([line for line in text.split("\n") if line.startswith("arg ")]) == len(arguments)
    assert len(text.split("\n")) == len(manifest(replace(BASE, argv=()), DIGESTS).split("\n")) + len(arguments)


LISTS: Mapping[str, tuple[Any, ...]] = {
    "env": ((("A", "x y"),), (("A", "x\ny"),), (("A", "x\\ny"),), (("A", "x"), ("B", "y")), (("A", "x\nenv B=y"),)),
    "outputs": (("a b",), ("a", "b"), ("a\nb",), ("a\\nb",), ("a\noutput b",)),
    "toolchain": ((("a", "1 2"),), (("a", "1"), ("b", "2")), (("a", "1\n2"),), (("a", "1\ntoolchain b 2"),)),
    "platform": ("a", "a b", "a\nb", "a\\nb", "a\noutput b"),
    "stage": ("a", "a\nb", "a\\nb", "a\narg b"),
    "inputs": (
        (("weights", Output(action="c:m", only=("a b",))),),
        (("weights", Output(action="c:m", only=("a", "b"))),),
        (("weights", Output(action="c:m", only=("a\nb",))),),
        (("weights", Files(root="/r", members=(("a b", "00"),))),),
        (("weights", Files(root="/r", members=(("a", "00"), ("b", "00")))),),
        (("weights", Files(root="/r", members=(("a 00\ninput weights b", "00"),))),),
    ),
}


@pytest.mark.parametrize("field", sorted(LISTS))
def test_two_values_of_any_field_never_give_one_text(field: str) -> None:
    texts = [manifest(replace(BASE, **{field: value}), DIGESTS) for value in LISTS[field]]
    assert len(set(texts)) == len(texts)


def test_the_order_in_which_a_set_is_written_does_not_matter() -> None:
    env, toolchain, outputs = (("B", "2"), ("A", "1")), (("b", "2"), ("a", "1")), ("y", "x")
    inputs = (("weights", Output(action="c:m")), ("more", Output(action="c:n")))
    one = replace(BASE, env=env, toolchain=toolchain, outputs=outputs, inputs=inputs)
    other = replace(BASE, env=env[::-1], toolchain=toolchain[::-1], outputs=outputs[::-1], inputs=inputs[::-1])
    assert _key(one) == _key(other)


def test_the_order_of_arguments_matters() -> None:
    assert _key(replace(BASE, argv=("a", "b"))) != _key(replace(BASE, argv=("b", "a")))


def test_where_files_lie_is_not_keyed_but_their_bytes_are() -> None:
    def of(root: str, content: str) -> str:
        return _key(replace(BASE, inputs=(("tool", Files(root=root, members=(("", content),))),)))

    assert of("/here", "00") == of("/there", "00")
    assert of("/here", "00") != of("/here", "01")


def test_where_a_local_folder_lies_is_not_keyed_but_its_bytes_are() -> None:
    here, there = (replace(BASE, inputs=(("weights", Local(path=path)),)) for path in ("/here", "/there"))
    assert _key(here) == _key(there)
    assert manifest(here, {"weights": "33" * 32}) != manifest(here, DIGESTS)


def test_which_action_made_an_input_is_not_keyed_only_what_it_made() -> None:
    assert _key(replace(BASE, inputs=(("weights", Output(action="other:m")),))) == _key(BASE)


def test_the_members_of_a_folder_are_a_line_each_so_that_why_names_the_file() -> None:
    files = Files(root="/t", members=(("a/x.j2", "00"), ("b.j2", "11")))
    text = manifest(replace(BASE, inputs=(("templates", files),)), {})
    assert "input templates a/x.j2 00\ninput templates b.j2 11\n" in text


def test_an_unknown_input_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        manifest(BASE, {})


def test_needs_are_the_actions_whose_outputs_are_read() -> None:
    inputs = (("a", Output(action="x:1")), ("b", Local(path="/l")), ("c", Files(root="/f", members=())))
    assert replace(BASE, inputs=inputs).needs() == ("x:1",)
