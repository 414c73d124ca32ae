"""Broken jobs. The mark ¦ shows where the error must point to; it is taken out before reading."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dneuro.errors import SpecError
from dneuro.spec import JobSpec, parse_job

GOOD = """\
# which units fire together
name: demo
images: {source: folder, root: /data}
network:
  name: torchvision:alexnet
  weights: none
  preprocessing: {resize: 256, crop: [224, 224], color: rgb}
store: /tmp/demo.zarr
steps:
  - extract:
      layers: {features.12: {keep: full}, features.9: }
      statistics: [moments]
  - svd:
      layer: features.12
      rank: 8
  - cooccurrence
  - similarity: {of: cooccurrence, metric: pearson}
  - report:
"""


def broken(old: str, new: str) -> tuple[str, str]:
    """Return GOOD with `old` replaced, the mark taken out, and the place of the mark as ``line:column``."""
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    assert text.count("¦") == 1
    before = text[: text.index("¦")]
    return text.replace("¦", ""), f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


CASES = {
    # devices
    "device that is none": (
        "weights: none",
        "weights: none\n  ¦device: gpu",
        "network.device: 'gpu' is no device that networks run on",
        "cuda:1",
    ),
    "precision that the device does not have": (
        "weights: none",
        "weights: none\n  ¦precision: tf32",
        "network.precision: tf32 is one of NVIDIA's GPUs, device 'cpu' does not have it",
        "precision: bfloat16",
    ),
    # keys
    "unknown key": (
        "rank: 8",
        "rank: 8\n      ¦methode: gram",
        "steps[1].svd.methode: unknown key 'methode'",
        "did you mean 'method'",
    ),
    "misspelt needed key": (
        "rank: 8",
        "¦rnak: 8",
        "steps[1].svd.rnak: unknown key 'rnak'",
        "did you mean 'rank'",
    ),
    "no space after the colon": (
        "source: folder, root: /data",
        "source: folder, root: /data, ¦seed:3",
        "images.seed:3: unknown key 'seed:3'",
        "`seed: 3`",
    ),
    "key of another source": (
        "source: folder, root",
        "source: digits, ¦root",
        "images.root: unknown key 'root'",
        "choices: sample, seed, source",
    ),
    "unknown key at the top": ("store:", "¦stoer: x\nstore:", "stoer: unknown key", "did you mean 'store'"),
    "missing at the top": ("name: demo\n", "¦", "name: missing", "add `name: …` - Name of the job"),
    "missing in a step": (
        "- svd:\n      layer: features.12\n      rank: 8",
        "- ¦svd:\n      layer: features.12",
        "steps[1].svd: takes one of rank, threshold and explained_variance, got none",
        "write `rank: 16`",
    ),
    "missing in a bare step": (
        "- report:",
        "- report\n  - ¦svd: {name: again}",
        "steps[5].svd: takes one of rank, threshold and explained_variance, got none",
        "write `rank",
    ),
    "key given twice": (
        "rank: 8",
        "rank: 8\n      ¦rank: 9",
        "key 'rank' is given twice, first in line 15",
        "delete one",
    ),
    # values
    "too small": (
        "rank: 8",
        "¦rank: 0",
        "steps[1].svd.rank: must be greater than 0, not 0",
        "singular triplets",
    ),
    "no whole number": (
        "rank: 8",
        "¦rank: 8.5",
        "steps[1].svd.rank: must be a whole number, not 8.5",
        "triplets",
    ),
    "text for a number": (
        "rank: 8",
        "¦rank: many",
        "steps[1].svd.rank: must be a whole number, not 'many'",
        "triplets",
    ),
    "true for a number": (
        "rank: 8",
        "¦rank: true",
        "steps[1].svd.rank: must be a number, not true",
        "triplets",
    ),
    "nothing for the number that is needed": (
        "- svd:\n      layer: features.12\n      rank: 8",
        "- ¦svd:\n      layer: features.12\n      rank:",
        "steps[1].svd: takes one of rank, threshold and explained_variance, got none",
        "write `rank: 16`",
    ),
    "negative seed": (
        "rank: 8",
        "rank: 8\n      ¦seed: -1",
        "steps[1].svd.seed: must be at least 0, not -1",
        "Seed",
    ),
    "unknown choice": (
        "keep: full",
        "¦keep: ful",
        "layers.features.12.keep: unknown value 'ful'",
        "did you mean 'full'",
    ),
    "choice of a list": (
        "[moments]",
        "[¦moment]",
        "steps[0].extract.statistics[0]: unknown value 'moment'",
        "did you mean 'moments'",
    ),
    "none for null": (
        "rank: 8",
        "rank: 8\n      ¦standardize: none",
        "unknown value 'none'",
        "write `null` for none",
    ),
    "number for text": (
        "layer: features.12",
        "¦layer: 1.10",
        "steps[1].svd.layer: must be text, not 1.1",
        '"1.10"',
    ),
    "number in a list of layers": (
        "{features.12: {keep: full}, features.9: }",
        "[features.12, ¦010]",
        "layers[1]: the name of a layer must be text, not 10",
        "quotes",
    ),
    "scalar for a mapping": (
        "features.9: ",
        "¦features.9: max",
        "must be a mapping, `key: value`, not 'max'",
        "write `{keep: max}`",
    ),
    "list for a mapping": (
        "network:\n  name: torchvision:alexnet\n  weights: none\n  preprocessing: {resize: 256, "
        "crop: [224, 224], color: rgb}",
        "¦network: [alexnet]",
        "network: must be a mapping, `key: value`, not a list of 1",
        "keys: name, weights",
    ),
    "not true or false": (
        "statistics: [moments]",
        "¦predictions: maybe",
        "steps[0].extract.predictions: must be true or false, not 'maybe'",
        "classifies",
    ),
    "no name": ("name: demo", "¦name: my demo", "name: 'my demo' is no name", "my-demo"),
    "too many sizes": (
        "crop: [224, 224]",
        "¦crop: [1, 2, 3]",
        "network.preprocessing.crop: must have at most 2 items",
        "(height, width)",
    ),
    "too few sizes": (
        "crop: [224, 224]",
        "¦crop: [224]",
        "network.preprocessing.crop: must have more items, has 1",
        "(height, width)",
    ),
    "zero size": (
        "resize: 256",
        "¦resize: 0",
        "network.preprocessing.resize: must be greater than 0, not 0",
        "Length",
    ),
    "means that do not fit": (
        "color: rgb",
        "color: rgb, ¦mean: [0.1, 0.2]",
        "network.preprocessing.mean: has 2 numbers, color=rgb needs 1 or 3",
        "",
    ),
    "infinite": (
        "color: rgb",
        "color: rgb, std: [¦.inf]",
        "network.preprocessing.std[0]: must be a finite number",
        "std:",
    ),
    "not a power of two": (
        "statistics: [moments]",
        "¦images_per_unit: 100",
        "must be a power of two, is 100",
        "take 64 or 128",
    ),
    "variable not set": (
        "store: /tmp/demo.zarr",
        "¦store: $NO_SUCH_VARIABLE_HERE/demo.zarr",
        "store: '$NO_SUCH_VARIABLE_HERE/demo.zarr' names an environment variable that is not set",
        "",
    ),
    "empty path": ("store: /tmp/demo.zarr", "¦store: ''", "store: must not be empty", "Zarr store"),
    "unknown source": (
        "source: folder",
        "¦source: foldr",
        "images.source: unknown source 'foldr'",
        "did you mean 'folder'? choices: digits, folder, files, array",
    ),
    "no source": (
        "images: {source: folder, root: /data}",
        "¦images: {root: /data}",
        "images.source: missing",
        "choices: digits, folder, files, array, imagenet-val, mnist, cifar10",
    ),
    # steps
    "unknown step": ("- svd:", "- ¦svdd:", "steps[1].svdd: unknown step 'svdd'", "did you mean 'svd'"),
    "unknown bare step": (
        "- cooccurrence",
        "- ¦coocurence",
        "unknown step 'coocurence'",
        "did you mean 'cooccurrence'",
    ),
    "settings beside their step": (
        "- svd:\n      layer: features.12\n      rank: 8",
        "- ¦svd:\n    layer: features.12\n    rank: 8",
        "steps[1]: the settings of svd stand beside it",
        "indent `layer`, `rank` below `svd:`",
    ),
    "two steps in one item": (
        "- report:",
        "- ¦report:\n    moments: {}",
        "a step is one key",
        "a dash of its own",
    ),
    "a list as a step": (
        "- report:",
        "- ¦[report]",
        "a step is one key, its kind, with its settings below it, not a list",
        "kinds: train, extract",
    ),
    "an empty step": ("- report:", "- report\n  -¦", "not nothing", "kinds: train"),
    "no steps": (
        GOOD[GOOD.index("steps:") :],
        "¦steps: []\n",
        "steps: must not be empty",
        "steps: What to do",
    ),
    "two steps of one name": (
        "- report:",
        "- report\n  - ¦svd: {rank: 2}",
        "steps[5].svd: 2 steps are named 'svd'",
        "svd-2",
    ),
    "no extract step": (
        GOOD[GOOD.index("steps:") :],
        "¦steps: [report]\n",
        "steps: no extract step",
        "- extract:",
    ),
    "two extract steps": (
        "- report:",
        "- ¦extract: {layers: [a], name: b}",
        "a second extract step",
        "the first one",
    ),
    "extract after its use": (
        "- extract:",
        "- ¦moments\n  - extract:",
        "steps[0].moments: moments uses what",
        "steps[1]",
    ),
    "late train": ("- report:", "- ¦train", "steps[4].train: the train step comes first", "top"),
    "unknown layer": (
        "layer: features.12",
        "¦layer: features.1",
        "steps[1].svd.layer: the extract step does not store layer 'features.1'",
        "'features.12'",
    ),
    "unknown layer in a list": (
        "layer: features.12",
        "layer: [features.9, ¦conv1]",
        "steps[1].svd.layer[1]",
        "choices: features.12, features.9",
    ),
    "unknown cooccurrence": (
        "of: cooccurrence",
        "¦of: coocurrence",
        "no cooccurrence step named 'coocurrence'",
        "did you mean 'cooccurrence'",
    ),
    "layer that is not counted": (
        "- cooccurrence\n  - similarity: {of: cooccurrence,",
        "- cooccurrence: {layer: features.9}\n  - similarity: {of: cooccurrence, ¦layer: features.12,",
        "step 'cooccurrence' does not count layer 'features.12'",
        "features.9",
    ),
    "facets of nothing": (
        "- report:",
        "- ¦facets:",
        "no selectivity step named 'selectivity' comes before this one",
        "add `- selectivity:` before it",
    ),
    "facets of an unknown step": (
        "- report:",
        "- selectivity: {name: classes, of: cooccurrence}\n  - facets: {¦of: clases}",
        "steps[5].facets.of: no selectivity step named 'clases' comes before this one",
        "did you mean 'classes'",
    ),
    "facets of selected images": (
        "- report:",
        "- selectivity\n  - facets: {¦select: {classes: [cat]}}",
        "the results of step 'selectivity' are compared, and they were made of its images",
        "give `select:` to step 'selectivity'",
    ),
    "facets of a layer that is not asked": (
        "- report:",
        "- selectivity: {layer: features.9}\n  - facets: {¦layer: features.12}",
        "step 'selectivity' is not asked of layer 'features.12'",
        "features.9",
    ),
    "average of some pairs": (
        "- similarity: {of: cooccurrence, metric: pearson}",
        "- similarity: {neighbours: 3}\n  - mean_similarity: {¦of: similarity}",
        "step 'similarity' keeps some pairs only, and the average is of all",
        "without neighbours and threshold",
    ),
    "layer twice": ("layer: features.12", "¦layer: [features.9, features.9]", "named twice: features.9", ""),
}


@pytest.mark.parametrize(("old", "new", "message", "hint"), CASES.values(), ids=CASES)
def test_broken_job__error_names_place_path_and_way_out(old: str, new: str, message: str, hint: str) -> None:
    text, place = broken(old, new)
    with pytest.raises(SpecError) as caught:
        parse_job(text, "jobs/demo.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) <= 2, "one mistake is one error"
    assert lines[0].startswith(f"jobs/demo.yaml:{place}: ")
    assert message in lines[0]
    assert hint in (caught.value.hint or "")


def test_good_job__reads() -> None:
    job = parse_job(GOOD)
    assert [step.id for step in job.steps] == ["extract", "svd", "cooccurrence", "similarity", "report"]


def test_errors__all_at_once_in_the_order_of_lines() -> None:
    text = (
        GOOD.replace("source: folder", "source: x")
        .replace("rank: 8", "rank: 0")
        .replace("name: demo", "name: a b")
    )
    with pytest.raises(SpecError) as caught:
        parse_job(text, "j.yaml", ["network.seed=x", "network.sed=1"])
    message = str(caught.value)
    assert message.splitlines()[0] == "j.yaml: 5 errors"
    starts = [line.split(": ")[0] for line in message.splitlines()[1:] if not line.startswith("  ")]
    assert starts == [
        "j.yaml:2:1",
        "j.yaml:3:10",
        "j.yaml:15:7",
        "in --set network.seed=x",
        "in --set network.sed=1",
    ]
    assert message.count("\n  hint: ") == 5
    assert caught.value.exit_code == 2


def test_error_in_python__same_words() -> None:
    with pytest.raises(ValidationError, match=r"unknown step 'svdd' \(did you mean 'svd'\?"):
        JobSpec.model_validate(
            {
                "name": "x",
                "images": {"source": "digits"},
                "network": {"name": "dneuro:convnet"},
                "store": "x.zarr",
                "steps": ["svdd"],
            }
        )


NOT_YAML = {
    "nothing": ("", "j.yaml: holds nothing", "`store:`"),
    "comments only": ("# later\n", "j.yaml: holds nothing", "`name:`"),
    "a list": (
        "- name: x\n",
        "j.yaml:1:1: a job must be a mapping, `key: value`, not a list of 1",
        "`steps:`",
    ),
    "a word": ("\nname\n", "j.yaml:2:1: a job must be a mapping", "`steps:`"),
    "a profile": (
        "# here\nbackend: local\n",
        "j.yaml:2:1: this is a profile, not a job",
        "--cluster PROFILE",
    ),
    "a tab": ("name: x\nsteps:\n\t- report\n", "j.yaml:3:1: not YAML:", "with spaces, not with tabs"),
    "an open bracket": ("a: [1,\nb: 2\n", "(begun in line 1)", "close every ["),
    "an open quotation mark": ("a: 'x\n", "not YAML:", "quotation mark"),
    "a colon in text": ("a: b: c\n", "j.yaml:1:5: not YAML:", "quotes"),
    "uneven indentation": ("a:\n  b: 1\n c: 2\n", "j.yaml:3:2: not YAML:", "the same indentation"),
    "a reserved sign": ("a: @home\n", "j.yaml:1:4: not YAML:", "quotes"),
    "a control sign": ("a: b\nc: \x07\n", "j.yaml:2:4: not YAML: character U+0007", "delete it"),
    "two documents": ("a: b\n---\nc: d\n", "j.yaml:2:1: not YAML:", "---"),
    "a Python object": (
        "a: !!python/object/apply:os.getcwd []\n",
        "j.yaml:1:4: tag !!python/object",
        "delete the tag",
    ),
    "a list as a key": ("? [a]\n: b\n", "j.yaml:1:3: a key must be text", "key: value"),
    "an alias of itself": ("a: &x [*x]\n", "an alias that contains itself", "write the value out"),
    "a merge of itself": ("a: &x {<<: *x}\n", "nested too deeply", ""),
    "deep nesting": ("a: " + "[" * 3000, "nested too deeply", ""),
    "many aliases": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(
            f"{y}: &{y} [{', '.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdef", "bcdefg", strict=True)
        ),
        "more than 100,000 values",
        "aliases",
    ),
}


@pytest.mark.parametrize(("text", "message", "hint"), NOT_YAML.values(), ids=NOT_YAML)
def test_no_job_at_all__says_what_it_is(text: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(text, "j.yaml")
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
