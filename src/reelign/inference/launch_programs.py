"""The sections of `LAUNCH.md`: one function a program, from what is known of the model to its commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from shlex import quote

from reelign.inference.original_names import EXPERTS, comfyui_file
from reelign.models.base import NativeSize
from reelign.sampling.sample import SampleConfig

COMFYUI_SOLVERS = {"unipc": "uni_pc", "euler": "euler", "renoise": "lcm"}


@dataclass(frozen=True)
class Described:
    """What the sections need to know of a model.

    Attributes:
        base: what adapters belong on, or the pipeline itself: a folder or a hub id.
        base_is_adapter: that base is an adapter too, which other programs need merged.
        undistilled: the sampler is a default, and not one that the model was made for.
        boundary: the noise level at which the second expert takes over.
        tokens_have_levels: Wan 2.2 5B.
        own_autoencoder: the autoencoder's class is reelign's own.
        shape_of_wan: heads of 128 channels and 256 frequencies, which ComfyUI takes for granted.
    """

    name: str
    folder: str
    form: str
    adapter: bool
    base: str
    base_is_adapter: bool
    size: NativeSize
    sampler: SampleConfig
    undistilled: bool
    boundary: float | None
    experts: bool
    tokens_have_levels: bool
    own_autoencoder: bool
    shape_of_wan: bool
    causal: bool

    @property
    def prompt(self) -> str:
        """Something that the model was trained on."""
        if self.own_autoencoder:
            return "a large red circle moving left fast on a white background"
        return "a red tram in the rain, seen from the pavement"

    @property
    def files(self) -> list[str]:
        """The files for ComfyUI, the expert for high noise first."""
        return [comfyui_file(self.folder, part, self.adapter) for part in (EXPERTS if self.experts else [None])]

    @property
    def pipeline(self) -> str:
        """What diffusers loads the pipeline from."""
        if self.form == "diffusers" and not self.adapter:
            return self.folder
        return "base" if self.base_is_adapter else self.base

    @property
    def merge_base(self) -> str:
        """A sentence, where the base has to be exported first."""
        if not self.base_is_adapter:
            return ""
        command = f"reelign export {quote(self.base)} --out base"
        return f"The base is an adapter itself; merge it first: `{command}`.\n\n"


def causal(model: Described) -> str:
    """A causal student is for reelign alone."""
    command = f"reelign stream {quote(model.folder)} {quote(model.prompt)}"
    if model.form != "diffusers":
        command = f"reelign export {quote(model.name)} --out student\nreelign stream student {quote(model.prompt)}"
    return (
        "## A causal student: `reelign stream`\n\n"
        f"{_code('sh', command)}\n\n"
        "This model was trained to make a clip block by block, each block seeing only the past (`causal.json`). "
        "diffusers, ComfyUI, SGLang and vLLM-Omni would let every frame see every other, and make wrong clips: there "
        "are no commands for them here."
    )


def diffusers(model: Described) -> str:
    """Python that runs as it stands."""
    lines = ["import torch", f"from diffusers import {', '.join(_imports(model))}"]
    lines.append("from diffusers.utils import export_to_video")
    if model.form == "peft":
        lines.append("from peft import PeftModel")
    if model.own_autoencoder:
        lines.append("import reelign.models.codec  # the class of the autoencoder")
    lines += ["", 'device = "cuda" if torch.cuda.is_available() else "cpu"']
    dtype = "{'default': torch.bfloat16, 'vae': torch.float32}"
    lines.append(f"pipe = WanPipeline.from_pretrained({model.pipeline!r}, dtype={dtype})")
    lines += [*_weights(model), *_scheduler(model.sampler), "pipe.to(device)"]
    lines += _call(model)
    notes = ""
    if model.sampler.solver == "renoise":
        notes = "\n\nIts noise is drawn otherwise than reelign draws it: clips of the same law, not the same clips."
    return f"## diffusers\n\n{model.merge_base}{_code('python', chr(10).join(lines))}{notes}"


def _imports(model: Described) -> list[str]:
    scheduler = "UniPCMultistepScheduler" if model.sampler.solver == "unipc" else "FlowMatchEulerDiscreteScheduler"
    network = ["WanTransformer3DModel"] if model.form == "comfyui" and not model.adapter else []
    return sorted([scheduler, "WanPipeline", *network])


def _weights(model: Described) -> list[str]:
    """What puts the exported weights into the pipeline, for each expert."""
    if model.form == "diffusers" and not model.adapter:
        return []
    lines = []
    for index, part in enumerate(("transformer", "transformer_2") if model.experts else ("transformer",)):
        second = ", load_into_transformer_2=True" if index else ""
        place = f"{model.folder}/transformer_2" if index else model.folder
        if model.form == "peft":
            lines.append(f"pipe.{part} = PeftModel.from_pretrained(pipe.{part}, {place!r}).merge_and_unload()")
        elif model.form == "diffusers":
            lines.append(f"pipe.load_lora_weights({place!r}{second})")
        elif model.adapter:
            lines.append(f"pipe.load_lora_weights({model.folder!r}, weight_name={model.files[index]!r}{second})")
        else:
            file, config = f"{model.folder}/{model.files[index]}", f"config={model.pipeline!r}, subfolder={part!r}"
            lines.append(f"pipe.{part} = WanTransformer3DModel.from_single_file(")
            lines.append(f"    {file!r}, {config}, dtype=torch.bfloat16")
            lines.append(")")
    return lines


def _scheduler(sampler: SampleConfig) -> list[str]:
    """The scheduler with the sampler's own grid; its spacing is diffusers' attribute `sigma_min` before the shift."""
    if sampler.solver == "unipc":
        settings = f'prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift={sampler.shift:g}'
        return [f"pipe.scheduler = UniPCMultistepScheduler({settings})"]
    renoise = ", stochastic_sampling=True" if sampler.solver == "renoise" else ""
    lines = [f"pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift={sampler.shift:g}{renoise})"]
    if (sampler.spacing or ("euler" if sampler.solver == "euler" else "unipc")) == "unipc":
        lowest = 1 - 0.999 * (sampler.steps - 1) / sampler.steps
        lines.append(f"pipe.scheduler.sigma_min = {lowest:.9g}  # evenly spaced steps, before the shift")
    return lines


def _call(model: Described) -> list[str]:
    size, sampler = model.size, model.sampler
    return [
        "",
        "clip = pipe(",
        f"    {model.prompt!r},",
        f"    negative_prompt={sampler.negative_prompt!r},",
        f"    num_frames={size.frames}, height={size.height}, width={size.width},",
        f"    num_inference_steps={sampler.steps}, guidance_scale={sampler.guidance_scale:g},",
        "    generator=torch.Generator().manual_seed(0),",
        ").frames[0]",
        f'export_to_video(clip, "clip.mp4", fps={size.fps:g})',
    ]


def comfyui(model: Described) -> str:
    """Where the files go and what the nodes are set to."""
    title = "## ComfyUI (not run)\n\n"
    if not model.shape_of_wan or model.own_autoencoder:
        return (
            f"{title}ComfyUI cannot run this model: it takes Wan's sizes (heads of 128 channels, 256 frequencies), its "
            "text encoder and its autoencoder for granted."
        )
    if model.form != "comfyui":
        command = f"reelign export {quote(model.name)} --out {quote(model.folder + '-comfyui')} --format comfyui"
        return f"{title}It reads other names:\n\n{_code('sh', command)}"
    kind = "loras" if model.adapter else "diffusion_models"
    copies = "\n".join(f"cp {quote(f'{model.folder}/{file}')} ComfyUI/models/{kind}/" for file in model.files)
    size, sampler = model.size, model.sampler
    loader = "`LoraLoaderModelOnly` at strength 1, on the base from `UNETLoader`" if model.adapter else "`UNETLoader`"
    vae = "wan2.2_vae" if model.tokens_have_levels else "wan_2.1_vae"
    latents = "Wan22ImageToVideoLatent" if model.tokens_have_levels else "EmptyHunyuanLatentVideo"
    nodes = [
        f"{loader}, then `ModelSamplingSD3` with shift {sampler.shift:g}"
        + (", for each expert" if model.experts else ""),
        f"`CLIPLoader` of type `wan` with `umt5_xxl`, `VAELoader` with `{vae}`",
        f"`{latents}`: {size.width} x {size.height}, length {size.frames}",
        f"`{'KSamplerAdvanced' if model.experts else 'KSampler'}`: steps {sampler.steps}, cfg "
        f"{sampler.guidance_scale:g}, sampler `{COMFYUI_SOLVERS[sampler.solver]}`, scheduler `simple`",
    ]
    if model.experts and model.boundary is not None:
        high = int((sampler.grid[:-1] >= model.boundary).sum())
        nodes.append(f"`high_noise` takes steps 0 to {high}, `low_noise` the rest from {high}")
    return title + model.merge_base + _code("sh", copies) + "\n\n" + "\n".join(f"- {node}" for node in nodes)


def sglang(model: Described) -> str:
    """`sglang generate` and `sglang serve`."""
    title = "## SGLang (not run)\n\n"
    if reason := _not_for_servers(model):
        return title + reason
    size, sampler = model.size, model.sampler
    start = f"--model-path {quote(model.base if model.adapter else f'./{model.folder}')}"
    if model.adapter and not model.experts:
        start += f" --lora-path {quote(f'{model.folder}/{model.files[0]}')}"
    commands = [
        f"sglang generate {start} \\\n"
        f"  --prompt {quote(model.prompt)} --seed 0 --save-output --output-path clips \\\n"
        f"  --num-frames {size.frames} --height {size.height} --width {size.width} --fps {size.fps:g} \\\n"
        f"  --num-inference-steps {sampler.steps} --guidance-scale {sampler.guidance_scale:g}",
        f"sglang serve {start} --port 30010",
    ]
    if model.adapter and model.experts:
        parts = ["transformer", "transformer_2"]
        files = [f"{model.folder}/{file}" for file in model.files]
        body = json.dumps({"lora_nickname": parts, "lora_path": files, "target": parts})
        ask = "curl http://localhost:30010/v1/set_lora -H 'Content-Type: application/json'"
        commands = [commands[1], f"{ask} \\\n  -d {quote(body)}"]
    notes = (
        "It takes the solver (UniPC) and the shift from the model's id or class, not from a folder: see that the shift "
        f"is {sampler.shift:g}."
    )
    return f"{title}{_code('sh', chr(10).join(commands))}\n\n{notes}{_other_solver(model)}"


def vllm_omni(model: Described) -> str:
    """`vllm serve --omni`, and a request."""
    title = "## vLLM-Omni (not run)\n\n"
    if reason := _not_for_servers(model):
        return title + reason
    size, sampler = model.size, model.sampler
    serve = f"vllm serve {quote(model.base if model.adapter else f'./{model.folder}')} --omni --port 8091"
    serve += f" --flow-shift {sampler.shift:g}"
    if model.boundary is not None:
        serve += f" --boundary-ratio {model.boundary:g}"
    if model.adapter:
        serve += " \\\n  --lora-backend distill --lora-path "
        serve += " ".join(quote(f"{model.folder}/{file}") for file in model.files)
    fields = {
        "prompt": model.prompt,
        "size": f"{size.width}x{size.height}",
        "num_frames": size.frames,
        "fps": f"{size.fps:g}",
        "num_inference_steps": sampler.steps,
        "guidance_scale": f"{sampler.guidance_scale:g}",
        **({"guidance_scale_2": f"{sampler.guidance_scale:g}"} if model.experts else {}),
        "flow_shift": f"{sampler.shift:g}",
        "seed": 0,
    }
    form = " \\\n".join(f"  -F {quote(f'{key}={value}')}" for key, value in fields.items())
    ask = f"curl http://localhost:8091/v1/videos/sync \\\n{form} \\\n  -o clip.mp4"
    return f"{title}{_code('sh', serve + chr(10) + ask)}{_other_solver(model)}"


def _not_for_servers(model: Described) -> str:
    """Why a server cannot take this folder, and what it takes; empty when it can."""
    if model.own_autoencoder:
        return "The autoencoder is a class of reelign, which no server has."
    whole, alone = f"{model.folder}-full", f"{model.folder}-comfyui"
    export = f"reelign export {quote(model.name)}"
    if model.adapter and (model.form != "comfyui" or model.base_is_adapter):
        command = f"{export} --out {quote(whole)}"
        if not model.base_is_adapter:
            command += f"\n{export} --out {quote(alone)} --format comfyui"
        reads = "a merged folder" if model.base_is_adapter else "a merged folder, or adapters in Wan's names"
        return f"It is given {reads}, whose own `LAUNCH.md` has the commands:\n\n{_code('sh', command)}"
    if not model.adapter and model.form != "diffusers":
        return f"It reads a diffusers folder:\n\n{_code('sh', f'{export} --out {quote(whole)}')}"
    return ""


def _other_solver(model: Described) -> str:
    if model.sampler.solver == "unipc":
        return ""
    return (
        f"\n\nThis model's solver is `{model.sampler.solver}`. For a Wan folder the default here is UniPC: the clips "
        "will be others than those that were judged."
    )


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
