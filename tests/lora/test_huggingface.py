"""An exported adapter does on transformers' `Sam3Model` what it does on SAM3 itself. Needs no network."""

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Sam3Config, Sam3Model
from typer.testing import CliRunner, Result

from sam3_lora.cli import app
from sam3_lora.config import LoraConfig
from sam3_lora.errors import AdapterError, ConfigError
from sam3_lora.lora import huggingface
from sam3_lora.lora.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterInfo, fingerprint, load_adapter, save_adapter
from sam3_lora.lora.export import export_native
from sam3_lora.lora.huggingface import CARD_FILE, PROVENANCE_FILE, export_peft, huggingface_module
from sam3_lora.lora.inject import adapter_parameters, inject
from sam3_lora.model import upstream, weights
from sam3_lora.model.architecture import SAM3
from sam3_lora.model.build import build_model, build_skeleton
from sam3_lora.model.weights import load_base
from tests.lora.huggingface_base import huggingface_base
from tests.models import MICRO, mixed_batch

TOLERANCE = 2e-5  # largest difference of a logit or a coordinate: float32 sums in another order (4e-6 measured)
ARCHITECTURE = replace(MICRO, vit_pretrain_image_size=70)  # position embeddings tiled, as in the full model
EVERYTHING = {"apply_to_text_encoder": True, "apply_to_geometry_encoder": True, "target_modules": ["all"]}
CONFIGS = {
    "everything": LoraConfig(
        rank=4,
        alpha=6.0,
        use_rslora=True,
        component_rank={"vision_encoder": 6, "text_encoder": 3, "geometry_encoder": 5, "scoring": 2},
        component_alpha={"detr_decoder": 3.0, "scoring": 9.0},
        **EVERYTHING,
    ),
    "defaults": LoraConfig(rank=3, alpha=6.0, target_modules=["q_proj", "v_proj"], vision_layers=2),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"network access: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base without the zeros and ones of initialisation, behind which a wrong name could hide."""
    folder = tmp_path_factory.mktemp("bases")
    (folder / "sam3-tiny").mkdir()
    torch.manual_seed(0)
    tensors = build_model(ARCHITECTURE).state_dict()
    real = {name: value + 0.05 * torch.randn_like(value) for name, value in tensors.items() if not value.is_complex()}
    save_file(real, folder / "sam3-tiny" / "model.safetensors")
    (folder / "sam3-tiny" / "architecture.json").write_text(json.dumps(ARCHITECTURE.to_dict()))
    return folder


@pytest.fixture(params=CONFIGS)
def adapter(request: pytest.FixtureRequest, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint folder with a tuned adapter and a training state."""
    monkeypatch.setattr(weights, "BASES", bases)
    model = load_base("sam3-tiny")
    info = AdapterInfo("sam3-tiny", fingerprint(model), 140, CONFIGS[request.param], {"ring": "a ```ring```"})
    inject(model, info.lora)
    torch.manual_seed(1)
    for parameter in adapter_parameters(model).values():
        parameter.data.normal_(0, 0.1)
    save_adapter(model, tmp_path / "best", info)
    (tmp_path / "best" / "training_state.pt").write_bytes(b"state")
    return tmp_path / "best"


one_adapter = pytest.mark.parametrize("adapter", ["defaults"], indirect=True)


def tuned(adapter: Path) -> nn.Module:
    model = load_base("sam3-tiny")
    load_adapter(model, adapter)
    return model


def fresh_huggingface() -> Sam3Model:
    return huggingface_base(load_base("sam3-tiny"), ARCHITECTURE)


def prompts(*, boxes: bool) -> Any:
    """Five text prompts on two images; with two of them boxed twice, one once, and the rest not at all."""
    batch = mixed_batch()
    if boxes:
        stage = batch.find_inputs[0]
        count = len(stage.img_ids)
        stage.input_boxes = torch.rand(2, count, 4, generator=torch.Generator().manual_seed(2)) * 0.4 + 0.3  # cxcywh
        stage.input_boxes_label = torch.tensor([[1] * count, [0] * count])
        stage.input_boxes_mask = torch.tensor([[i >= 3, i >= 2] for i in range(count)])  # True: padding
    return batch


def official_outputs(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        outputs = model(batch)[-1]
    return {
        "logits": outputs["pred_logits"][..., 0],
        "boxes": outputs["pred_boxes_xyxy"],
        "presence": outputs["presence_logit_dec"],
        "masks": outputs["pred_masks"],
    }


def huggingface_outputs(model: nn.Module, batch: Any, *, padding_box: bool = True) -> dict[str, Tensor]:
    """The same prompts, with the padding box that the model card tells of where there is no other."""
    stage = batch.find_inputs[0]
    tokenize = upstream.tokenizer()
    tokens = tokenize(batch.find_text_batch, context_length=ARCHITECTURE.text_context)[stage.text_ids]
    boxes, labels = (
        stage.input_boxes.transpose(0, 1),
        stage.input_boxes_label.T.masked_fill(stage.input_boxes_mask, -10),
    )
    if padding_box and not boxes.numel():
        boxes, labels = torch.zeros(len(tokens), 1, 4), torch.full((len(tokens), 1), -10)
    with torch.no_grad():
        outputs = model(
            pixel_values=batch.img_batch[stage.img_ids],
            input_ids=tokens,
            attention_mask=(tokens != 0).long(),
            input_boxes=boxes,
            input_boxes_labels=labels,
        )
    return {
        "logits": outputs.pred_logits,
        "boxes": outputs.pred_boxes,
        "presence": outputs.presence_logits,
        "masks": outputs.pred_masks,
    }


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    return {name: float((one[name] - other[name]).abs().max()) for name in one}


@pytest.mark.parametrize("boxes", [False, True], ids=["text", "text_and_boxes"])
def test_transformers_gives_the_same_outputs(adapter: Path, tmp_path: Path, boxes: bool):
    export_peft(adapter, tmp_path / "peft")
    batch = prompts(boxes=boxes)
    base, expected = official_outputs(load_base("sam3-tiny"), batch), official_outputs(tuned(adapter), batch)
    assert min(differences(expected, base).values()) > 500 * TOLERANCE
    assert max(differences(huggingface_outputs(fresh_huggingface(), batch), base).values()) < TOLERANCE
    model = PeftModel.from_pretrained(fresh_huggingface(), tmp_path / "peft").eval()
    assert max(differences(huggingface_outputs(model, batch), expected).values()) < TOLERANCE
    merged = model.merge_and_unload()
    assert max(differences(huggingface_outputs(merged, batch), expected).values()) < TOLERANCE
    own = fresh_huggingface()
    own.load_adapter(str(tmp_path / "peft"))  # transformers' own way
    assert max(differences(huggingface_outputs(own.eval(), batch), expected).values()) < TOLERANCE


@one_adapter
def test_without_the_padding_box_transformers_leaves_a_token_out(adapter: Path, tmp_path: Path):
    """Why the model card asks for it. Once this fails, transformers does it by itself and the card can say less."""
    batch, base = prompts(boxes=False), load_base("sam3-tiny")
    without = huggingface_outputs(fresh_huggingface(), batch, padding_box=False)
    assert differences(without, official_outputs(base, batch))["logits"] > 500 * TOLERANCE


def test_peft_takes_every_tensor_to_its_own_linear(adapter: Path, tmp_path: Path):
    export_peft(adapter, tmp_path / "peft")
    model = PeftModel.from_pretrained(fresh_huggingface(), tmp_path / "peft")
    loaded = model.load_adapter(tmp_path / "peft", adapter_name="again")
    assert loaded.unexpected_keys == []
    assert [name for name in loaded.missing_keys if "lora" in name] == []
    ours = adapter_parameters(tuned(adapter))
    injected = {
        name: module for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)
    }
    assert len(injected) == len(ours) / 2 == len(load_file(tmp_path / "peft" / WEIGHTS_FILE)) / 2
    original = tuned(adapter)
    for name in (name.removesuffix(".a") for name in ours if name.endswith(".a")):
        module, _, role = name.partition(".lora.")
        theirs = injected.pop(huggingface_module(module, role, ""))
        assert torch.equal(theirs.lora_A["default"].weight, ours[f"{name}.a"])
        assert torch.equal(theirs.lora_B["default"].weight, ours[f"{name}.b"])
        assert theirs.scaling["default"] == pytest.approx(original.get_submodule(name).scale)
    assert not injected


def test_every_adaptable_projection_of_the_full_model_has_a_linear():
    ours = build_skeleton(SAM3)
    inject(ours, LoraConfig(**EVERYTHING))
    with torch.device("meta"):
        theirs = Sam3Model(Sam3Config())
    parameters = adapter_parameters(ours)
    names = []
    for name in (name.removesuffix(".a") for name in parameters if name.endswith(".a")):
        module, _, role = name.partition(".lora.")
        names.append(huggingface_module(module, role, ""))
        linear = theirs.get_submodule(names[-1])
        assert type(linear) is nn.Linear, names[-1]
        assert linear.in_features == parameters[f"{name}.a"].shape[1], names[-1]
        assert linear.out_features == parameters[f"{name}.b"].shape[0], names[-1]
    assert len(names) == len(set(names)) == 521


@one_adapter
def test_the_folder_says_where_the_adapter_is_from(adapter: Path, tmp_path: Path):
    export_peft(adapter, tmp_path / "peft")
    assert {file.name for file in (tmp_path / "peft").iterdir()} == {
        WEIGHTS_FILE,
        CONFIG_FILE,
        CARD_FILE,
        PROVENANCE_FILE,
    }
    native = json.loads((adapter / CONFIG_FILE).read_text())
    assert json.loads((tmp_path / "peft" / PROVENANCE_FILE).read_text()) == native
    card = (tmp_path / "peft" / CARD_FILE).read_text()
    for fact in (native["base_fingerprint"], "140 x 140", '"ring": "a ```ring```"', "SAM License"):
        assert fact in card
    (example,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    compile(example, "card", "exec")
    assert '"path/of/the/base", 140' in example
    assert json.loads((tmp_path / "peft" / CONFIG_FILE).read_text())["base_model_name_or_path"] is None


def test_an_adapter_of_sam3_names_the_published_model(tmp_path: Path):
    model = build_skeleton(SAM3)
    info = AdapterInfo("sam3", "0" * 64, 1008, LoraConfig(rank=1, vision_layers=1), {})
    inject(model, info.lora)
    for name, parameter in adapter_parameters(model).items():
        module, _, matrix = name.rpartition(".")
        setattr(model.get_submodule(module), matrix, nn.Parameter(torch.zeros(parameter.shape)))
    save_adapter(model, tmp_path / "adapter", info)
    export_peft(tmp_path / "adapter", tmp_path / "peft")
    body = json.loads((tmp_path / "peft" / CONFIG_FILE).read_text())
    assert body["base_model_name_or_path"] == "facebook/sam3"
    assert "vision_encoder.backbone.layers.31.attention.q_proj" in body["target_modules"]
    assert "\nbase_model: facebook/sam3\n" in (tmp_path / "peft" / CARD_FILE).read_text()


@one_adapter
@pytest.mark.parametrize("export", [export_peft, export_native])
@pytest.mark.parametrize("damage", ["truncated", "missing", "nan", "config"])
def test_a_damaged_adapter_is_refused(adapter: Path, tmp_path: Path, export, damage: str):
    file = adapter / WEIGHTS_FILE
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "config":
        (adapter / CONFIG_FILE).write_text("{}")
    else:
        tensors = load_file(file)
        name = next(iter(tensors))
        if damage == "nan":
            tensors[name].fill_(float("nan"))
        else:
            tensors.pop(name)
        save_file(tensors, file)
    with pytest.raises(AdapterError):
        export(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


@one_adapter
@pytest.mark.parametrize("export", [export_peft, export_native])
def test_what_is_there_is_never_replaced(adapter: Path, tmp_path: Path, export):
    (tmp_path / "empty").mkdir()
    export(adapter, tmp_path / "empty")
    before = {file: file.read_bytes() for file in (tmp_path / "empty").iterdir()}
    (tmp_path / "file").write_text("mine")
    for output in ("empty", "file", "best"):
        with pytest.raises(ConfigError, match="exists already") as caught:
            export(adapter, tmp_path / output)
        assert caught.value.errors[0]["pointer"] == "/output"
    assert before == {file: file.read_bytes() for file in (tmp_path / "empty").iterdir()}
    assert (tmp_path / "file").read_text() == "mine"


@one_adapter
@pytest.mark.parametrize("export", [export_peft, export_native])
def test_an_output_that_cannot_be_written_leaves_nothing(adapter: Path, tmp_path: Path, export, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be written"):
        export(adapter, tmp_path / "file" / "out")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    monkeypatch.setattr(huggingface, "_write_json", full)
    with pytest.raises(ConfigError, match="No space left"):
        export(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "file"]


@pytest.mark.parametrize("adapter", ["everything"], indirect=True)
def test_a_module_that_transformers_lacks_is_named(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface, "_TABLE", huggingface._TABLE[:-1])
    with pytest.raises(AdapterError, match=r"dot_prod_scoring\.prompt_proj") as caught:
        export_peft(adapter, tmp_path / "out")
    assert "lora.apply_to_scoring: false" in caught.value.hint
    assert not (tmp_path / "out").exists()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@one_adapter
def test_command_line(adapter: Path, tmp_path: Path):
    done = run("export", "--adapter", adapter, "--output", tmp_path / "native", "--format", "native")
    assert done.exit_code == 0, done.output
    assert {file.name for file in (tmp_path / "native").iterdir()} == {WEIGHTS_FILE, CONFIG_FILE}
    batch = prompts(boxes=False)
    expected = official_outputs(tuned(adapter), batch)
    assert max(differences(official_outputs(tuned(tmp_path / "native"), batch), expected).values()) == 0
    done = run("export", "--adapter", tmp_path / "native", "--output", tmp_path / "peft", "--format", "peft")
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "peft") in done.output.replace("\n", "")
    assert json.loads((tmp_path / "peft" / CONFIG_FILE).read_text())["peft_type"] == "LORA"
    again = run("export", "--adapter", adapter, "--output", tmp_path / "peft", "--format", "peft")
    assert again.exit_code == 2
    assert "/output: it exists already" in again.output.replace("\n", "")
    missing = run("export", "--adapter", tmp_path / "nothing", "--output", tmp_path / "out", "--format", "native")
    assert missing.exit_code == 1
    assert run("export", "--adapter", adapter, "--output", tmp_path / "out", "--format", "onnx").exit_code == 2
