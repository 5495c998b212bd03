"""Models of diffusers: our samplers on them against its own schedulers and pipelines."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bridge_text import clip
from torch import Tensor

from guidance import CFG, DDIM, Condition, Discrete, DPMSolver, Heun, UserError, level, on, sample, stubs
from guidance.bridges.diffusers import DiffusersNetwork, Latents, Timesteps, denoiser, load, parameterization, schedule
from guidance.bridges.diffusers.schedule import STRAIGHT
from guidance.bridges.transformers import Prompt
from guidance.condition import Vector
from guidance.noise import Stream, normal
from guidance.sampler import Progress
from guidance.schedule import logsnr

D: Any = stubs.diffusers()
SHAPE = (3, 3, 8, 8)
UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}


def lively(model: Any) -> Any:
    """A random network whose output depends on all that it is told."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.4 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def unet(**settings: Any) -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return lively(D.UNet2DModel(**UNET, **blocks, **({"sample_size": 8, "in_channels": 3, "out_channels": 3} | settings)))


def text_unet(**settings: Any) -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return lively(
        D.UNet2DConditionModel(
            **UNET, **blocks, **({"sample_size": 8, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16} | settings)
        )
    )


def dit() -> Any:
    torch.manual_seed(0)
    made = D.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=5,
        norm_num_groups=4,
    )
    return lively(made)


def autoencoder(**settings: Any) -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    made = D.AutoencoderKL(**blocks, block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=16, **settings)
    return lively(made)


def start(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """The noise that our samples begin with."""
    return normal(seed, Stream.START, 0, 0, shape)


@torch.no_grad()
def their_loop(scheduler: Any, steps: int, x: Tensor, model: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A pipeline's loop: x of unit variance, ``model(x, t)``."""
    scheduler.set_timesteps(steps)
    if isinstance(scheduler, D.HeunDiscreteScheduler | D.EulerDiscreteScheduler):
        x = x / scheduler.alphas_cumprod[int(scheduler.timesteps[0])].sqrt()  # in the frame alpha = 1
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x


def error(mine: Tensor, theirs: Tensor) -> float:
    assert theirs.std() > 0.1 and theirs.isfinite().all()
    return float((mine - theirs).norm() / theirs.norm())


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPM": ("DDPMScheduler", {}),
    "DDIM, scaled": ("DDIMScheduler", SCALED),
    "DPM, cosine": ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "Euler": ("EulerDiscreteScheduler", {"num_train_timesteps": 300}),
    "Heun, exp": ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
    "PNDM, trained": ("PNDMScheduler", {"trained_betas": [0.01, 0.05, 0.2, 0.1], "num_train_timesteps": 4}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "CogVideoX": ("CogVideoXDDIMScheduler", {"rescale_betas_zero_snr": False}),
    "Euler, zero SNR": ("EulerDiscreteScheduler", SCALED | {"rescale_betas_zero_snr": True}),
}


def scheduler_of(name: str) -> Any:
    kind, settings = SCHEDULERS[name]
    return getattr(D, kind)(**settings)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_schedule_has_the_schedulers_own_alphas_and_timesteps(name: str):
    scheduler = scheduler_of(name)
    steps = scheduler.config.num_train_timesteps
    ours = schedule(scheduler)
    alpha, sigma = ours(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(sigma**2, 1 - scheduler.alphas_cumprod.double(), rtol=1e-9, atol=1e-12)

    network = DiffusersNetwork(unet(), ours, lambda condition: {}, steps)
    shown = torch.cat([level(ours, torch.tensor(k / steps, dtype=torch.float64), start(SHAPE)).logsnr[None] for k in range(1, steps + 1)])
    exactly = network.timestep(shown.clamp(-20, 20).float())  # what a Denoiser shows
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    each = level(ours, times, torch.zeros(steps, 1)).logsnr  # one a sample, as in training
    for found in (exactly, network.timestep(each.clamp(-20, 20))):
        assert torch.equal(found, torch.arange(steps, dtype=torch.float32))
    times = torch.linspace(1e-3, 1, 5001, dtype=torch.float64)
    between = network.timestep(logsnr(ours, times).clamp(-20, 20).float())
    assert (between.diff() >= 0).all() and between[0] >= 0 and between[-1] == steps - 1
    assert (between - (times * steps - 1).clamp(min=0)).abs().max() < 0.6  # the cubic in log alpha is not the line in logsnr
    assert network.timestep(torch.tensor([30.0, -30.0])).tolist() == [0, steps - 1]


def test_between_the_training_steps_the_timestep_is_diffusers_own():
    scheduler = D.EulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(23)
    network = DiffusersNetwork(unet(), schedule(scheduler), lambda condition: {}, 1000)
    found = network.timestep(-2 * scheduler.sigmas[:-1].double().log().float())
    torch.testing.assert_close(found, scheduler.timesteps.float(), atol=2e-2, rtol=0)
    assert (scheduler.timesteps[1:-1] % 1).abs().max() > 0.1


def test_zero_terminal_snr_is_what_diffusers_puts_there():
    assert scheduler_of("Euler, zero SNR").alphas_cumprod[-1] == 2**-24
    zero = D.DDIMScheduler(rescale_betas_zero_snr=True, **SCALED)
    assert zero.alphas_cumprod[-1] == 0
    assert float(schedule(zero)(torch.tensor(1.0, dtype=torch.float64))[0]) == pytest.approx(2**-12, rel=1e-9)


def test_zero_terminal_snr_falls_also_where_diffusers_number_is_above_the_step_before():
    scheduler = D.EulerDiscreteScheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-2] < scheduler.alphas_cumprod[-1]
    alpha = schedule(scheduler)(torch.arange(1, 1001, dtype=torch.float64) / 1000)[0]
    torch.testing.assert_close(alpha[:-1] ** 2, scheduler.alphas_cumprod[:-1].double(), rtol=1e-9, atol=0)
    assert alpha[-1] < alpha[-2]
    network = denoiser(unet(), scheduler).network
    assert isinstance(network, DiffusersNetwork)
    assert network.timestep(2 * alpha[-3:].log().clamp(-20).float()).tolist() == [997, 998, 999]


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "ScoreSdeVeScheduler", "CMStochasticIterativeScheduler", "IPNDMScheduler"])
def test_schedulers_without_betas_are_refused(kind: str):
    with pytest.raises(UserError, match=f"{kind} has no list of betas"):
        schedule(getattr(D, kind)())


def test_what_a_model_predicts_is_read_as_the_scheduler_reads_it():
    torch.manual_seed(0)
    x, output = torch.randn(2, *SHAPE)
    for kind in ("epsilon", "sample", "v_prediction"):
        scheduler = D.DDIMScheduler(prediction_type=kind, clip_sample=False)
        scheduler.set_timesteps(1000)
        for k in (0, 300, 999):
            at = level(schedule(scheduler), torch.tensor((k + 1) / 1000), x)
            theirs = scheduler.step(output, k, x).pred_original_sample
            torch.testing.assert_close(parameterization(scheduler).read(output, x, at).x0, theirs, rtol=2e-4, atol=1e-4)
    flow = D.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    flow.set_timesteps(10)
    flow._init_step_index(flow.timesteps[3])
    at = level(schedule(flow), 1 - flow.sigmas[3].double() * 0 - (1 - flow.sigmas[3].double()), x)
    torch.testing.assert_close(
        parameterization(flow).read(output, x, at).x0, flow.convert_model_output(output, sample=x), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(UserError, match="no prediction_type 'both'"):
        parameterization(D.DDIMScheduler(prediction_type="both"))


LOOPS = {
    "DDIM": (D.DDIMScheduler, {"clip_sample": False}, DDIM()),
    "DPM++ 2M": (D.DPMSolverMultistepScheduler, {}, DPMSolver()),
    "Heun": (D.HeunDiscreteScheduler, {}, Heun(mirror=False)),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
def test_our_samplers_are_theirs(loop: str, predicts: str):
    kind, settings, sampler = LOOPS[loop]
    if loop == "Heun" and predicts == "sample":
        pytest.skip("diffusers' Heun does not take it")
    model = unet()
    for spacing, steps in (("trailing", 10), ("trailing", 25), ("leading", 10), ("linspace", 10)):
        scheduler = kind(prediction_type=predicts, timestep_spacing=spacing, **settings)
        theirs = their_loop(scheduler, steps, start(SHAPE), lambda x, t: model(x, t).sample)
        if (loop, spacing) == ("DDIM", "linspace"):
            continue  # its steps there do not end where the next begins
        if (loop, spacing) == ("Heun", "linspace"):
            continue  # fractional timesteps, at which diffusers interpolates sigma
        grids = [None, Timesteps.of(scheduler)] if spacing == "trailing" else [Timesteps.of(scheduler)]
        for grid in grids:
            mine = sample(denoiser(model, scheduler), SHAPE, sampler=sampler, steps=steps, grid=grid)
            assert error(mine, theirs) < 1e-5, (spacing, steps)


def test_zero_terminal_snr_is_sampled_as_theirs():
    model = unet()
    settings = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True} | SCALED
    scheduler = D.DPMSolverMultistepScheduler(**settings)
    theirs = their_loop(scheduler, 20, start(SHAPE), lambda x, t: model(x, t).sample)
    assert error(sample(denoiser(model, scheduler), SHAPE, sampler=DPMSolver(), steps=20), theirs) < 1e-5
    exact = D.DDIMScheduler(clip_sample=False, **settings)
    theirs = their_loop(exact, 20, start(SHAPE), lambda x, t: model(x, t).sample)  # begins at alpha = 0, ours at 2^-12
    assert error(sample(denoiser(model, exact), SHAPE, sampler=DDIM(), steps=20), theirs) < 1e-3


def test_edms_own_heun_is_the_trapezium_rule_in_sigma_and_agrees_with_its_mirror_in_the_limit():
    model = denoiser(unet(), D.DDPMScheduler(prediction_type="v_prediction"))
    last, errors = {}, []
    for steps in (20, 40, 80):
        last = {mirror: sample(model, SHAPE, sampler=Heun(mirror=mirror), steps=steps) for mirror in (True, False)}
        errors.append(error(last[True], last[False]))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_a_grid_is_for_its_own_schedule_and_steps():
    scheduler = D.DDIMScheduler()
    scheduler.set_timesteps(10)
    grid = Timesteps.of(scheduler)
    assert grid.timesteps == tuple(range(900, -1, -100))
    torch.testing.assert_close(grid(schedule(scheduler), 10), (torch.arange(900, -1, -100, dtype=torch.float64) + 1) / 1000)
    with pytest.raises(UserError, match="steps=10, not 20"):
        grid(schedule(scheduler), 20)
    with pytest.raises(UserError, match="the schedule is another"):
        grid(Discrete.linear(50), 10)
    for wrong in ((), (3.0, 5.0), (1001.0,), (5.0, -1.0)):
        with pytest.raises(UserError, match="timesteps fall"):
            Timesteps(wrong)


# Classes


def test_rows_without_a_class_are_given_the_null_class():
    model = unet(num_class_embeds=4)
    main = denoiser(model, D.DDPMScheduler(), null_class=3)
    x = start(SHAPE)
    at = level(main.schedule, torch.tensor(0.25), x)
    context = main.network.embed(Condition({"label": torch.tensor([0, 1, 2])}, {"label": torch.tensor([True, False, True])}))
    found = main(x, at, context).eps
    with torch.no_grad():
        theirs = model(x, 249, torch.tensor([0, 3, 2])).sample
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)
    assert (found[1] - model(x, 249, torch.tensor([0, 0, 2])).sample[1]).abs().max() > 0.01


def test_a_model_without_a_null_class_refuses_unconditional_rows_and_nothing_else():
    model, scheduler = unet(num_class_embeds=4), D.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    main = denoiser(model, scheduler)
    labels = torch.tensor([0, 1, 3])
    for guidance in (CFG(2.0), CFG(-1.0), CFG(torch.tensor([1.0, 0.0, 1.0]))):
        with pytest.raises(UserError, match="no null class: name it as null_class="):
            sample(main, SHAPE, Condition.of(label=labels), guidance, steps=2)
    theirs = their_loop(scheduler, 10, start(SHAPE), lambda x, t: model(x, t, labels).sample)
    assert error(sample(main, SHAPE, Condition.of(label=labels), CFG(1.0), DDIM(), steps=10), theirs) < 1e-5
    theirs = their_loop(scheduler, 10, start(SHAPE), lambda x, t: 2 * model(x, t, labels).sample - model(x, t, 0 * labels + 2).sample)
    composed = 2.0 * on(label=labels) - 1.0 * on(label=2)
    assert error(sample(main, SHAPE, Condition.of(label=labels), composed, DDIM(), steps=10), theirs) < 1e-5
    with pytest.raises(UserError, match="lacks 'label'"):
        sample(main, SHAPE, steps=2)
    with pytest.raises(UserError, match="one of the model's 4 classes"):
        denoiser(model, scheduler, null_class=4)


def test_an_unconditional_model_knows_no_attribute():
    main = denoiser(unet(), D.DDPMScheduler())
    with pytest.raises(UserError, match="no attribute 'label'"):
        sample(main, SHAPE, Condition.of(label=[0, 1, 2]), steps=2)
    absent = Condition.of(label=[0, 1, 2]).drop()
    assert torch.equal(sample(main, SHAPE, absent, steps=2), sample(main, SHAPE, steps=2))


@pytest.mark.parametrize("scale", [5.0, -2.0])
def test_dit_is_guided_against_its_own_null_class_with_a_learned_variance_cut(scale: float):
    model, scheduler = dit(), D.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    shape, labels = (3, 4, 8, 8), torch.tensor([0, 4, 2])

    def by_hand(x: Tensor, t: Tensor) -> Tensor:
        conditional, null = (model(x, timestep=t.expand(3), class_labels=c).sample[:, :4] for c in (labels, 0 * labels + 5))
        return null + scale * (conditional - null)

    theirs = their_loop(scheduler, 10, start(shape), by_hand)
    mine = sample(denoiser(model, scheduler), shape, Condition.of(label=labels), CFG(scale), DDIM(), steps=10)
    assert error(mine, theirs) < 1e-4


def test_a_learned_variance_is_cut_and_anything_else_refused():
    six = unet(out_channels=6)
    found = sample(denoiser(six, D.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)), SHAPE, steps=5)
    theirs = their_loop(
        D.DDIMScheduler(timestep_spacing="trailing", clip_sample=False), 5, start(SHAPE), lambda x, t: six(x, t).sample[:, :3]
    )
    assert error(found, theirs) < 1e-5
    with pytest.raises(UserError, match="takes 3 channels and gives 4"):
        sample(denoiser(unet(out_channels=4), D.DDPMScheduler()), SHAPE, steps=1)


# Texts


def pipeline(**scheduler: Any) -> Any:
    words, encoder = clip()
    words.model_max_length = 12
    parts = {"vae": autoencoder(scaling_factor=0.4), "text_encoder": encoder, "tokenizer": words, "unet": text_unet()}
    settings = {
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": True,
    } | scheduler
    made = D.StableDiffusionPipeline(
        **parts, scheduler=D.DDIMScheduler(**settings), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


TEXTS = ["a red cat", "the sky on the grass"]


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_prompts_are_guided_as_stable_diffusions_pipeline_does_it(predicts: str):
    pipe = pipeline(prediction_type=predicts)
    noise = start((2, 4, 8, 8))
    given = {"latents": noise, "num_inference_steps": 10, "guidance_scale": 5.0, "width": 16, "height": 16}
    model = load(pipe)
    seen: list[Tensor] = []

    def last(progress: Progress) -> None:
        seen.append(progress.x_t)

    mine = model.sample(2, {"prompt": TEXTS}, guidance=CFG(5.0), sampler=DDIM(), steps=10, callbacks=[last])
    assert error(seen[-1], pipe(TEXTS, output_type="latent", **given).images) < 1e-4
    pictures = torch.from_numpy(pipe(TEXTS, output_type="np", **given).images).permute(0, 3, 1, 2) * 255
    assert mine.dtype == torch.uint8 and mine.shape == (2, 3, 16, 16)
    assert (mine - pictures).abs().max() < 0.6 and pictures.std() > 10


def test_prompts_are_guided_away_from_and_composed_by_the_same_formula():
    pipe = pipeline()
    model, scheduler = load(pipe), pipe.scheduler

    def states(text: str) -> Tensor:
        ids = pipe.tokenizer(text, padding="max_length", max_length=12, return_tensors="pt").input_ids
        with torch.no_grad():
            return pipe.text_encoder(ids)[0].expand(2, -1, -1)

    cat, grass, null = states("a red cat"), states("the grass"), states("")

    def eps(x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        found: Tensor = pipe.unet(x, t, encoder_hidden_states=states).sample
        return found

    formulas: Mapping[str, tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = {
        "inverse": (-2.0 * on(prompt="a red cat"), lambda x, t: 3 * eps(x, t, null) - 2 * eps(x, t, cat)),
        "composed": (
            2.0 * on(prompt="a red cat") - 1.5 * on(prompt="the grass"),
            lambda x, t: 2 * eps(x, t, cat) - 1.5 * eps(x, t, grass) + 0.5 * eps(x, t, null),
        ),
    }
    for name, (guidance, formula) in formulas.items():
        theirs = their_loop(scheduler, 10, start((2, 4, 8, 8)), formula)
        (mine,) = model.latents(2, guidance=guidance, sampler=DDIM(), steps=10)
        assert error(mine, theirs) < 1e-4, name
    each = CFG(torch.tensor([5.0, -2.0]))
    (mine,) = model.latents(2, {"prompt": ["a red cat", "the grass"]}, guidance=each, sampler=DDIM(), steps=10)
    for k, (scale, text) in enumerate([(5.0, cat), (-2.0, grass)]):
        theirs = their_loop(scheduler, 10, start((2, 4, 8, 8)), lambda x, t, s=scale, c=text: s * eps(x, t, c) + (1 - s) * eps(x, t, null))
        assert error(mine[k], theirs[k]) < 1e-4


def test_models_that_need_more_are_refused_unless_told_how():
    words, encoder = clip()
    prompt, scheduler = Prompt.of(words, encoder, 12), D.DDIMScheduler()
    with pytest.raises(UserError, match="needs a text encoder"):
        denoiser(text_unet(), scheduler)
    with pytest.raises(UserError, match=r"addition_embed_type='text_time'.*give keywords="):
        big = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
        denoiser(text_unet(**big), scheduler, prompt=prompt)
    with pytest.raises(UserError, match="fourier time embedding"):
        denoiser(unet(time_embedding_type="fourier"), scheduler)
    with pytest.raises(UserError, match=r"SD3Transformer2DModel is told .* is not known: give keywords="):
        denoiser(sd3(), D.FlowMatchEulerDiscreteScheduler())


# Flow matching


def sd3() -> Any:
    torch.manual_seed(0)
    made = D.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=6,
        caption_projection_dim=16, pooled_projection_dim=5, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    return lively(made)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_by_ddim_is_eulers_rule_and_other_conditions_come_from_a_function(shift: float):
    model = sd3()
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=shift)
    torch.manual_seed(1)
    texts, pooled, shape, scale = torch.randn(2, 7, 6), torch.randn(2, 5), (2, 4, 8, 8), -1.5
    asked: list[int] = []

    def keywords(condition: Condition) -> Mapping[str, Tensor]:
        asked.append(len(condition))
        there = condition.keep["pooled"][:, None]
        rows = condition.values["pooled"] * there
        return {"pooled_projections": rows, "encoder_hidden_states": condition.values["text"] * there[:, None]}

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        said = [model(x, timestep=t.expand(2), encoder_hidden_states=texts * k, pooled_projections=pooled * k).sample for k in (1, 0)]
        return scale * said[0] + (1 - scale) * said[1]

    scheduler.set_timesteps(12)
    x = start(shape)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(velocity(x, t), t, x).prev_sample
    main = denoiser(model, scheduler, keywords=keywords)
    given = Condition.of(pooled=pooled, text=texts)
    mine = sample(main, shape, given, CFG(scale), DDIM(), steps=12, grid=Timesteps.of(scheduler))
    assert error(mine, x) < 1e-4 and asked == [4]


def test_the_shift_is_that_of_the_scheduler():
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    alpha, sigma = schedule(scheduler)(torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(sigma.float(), scheduler.sigmas[:-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(alpha + sigma, torch.ones(4).double())
    assert schedule(D.FlowMatchEulerDiscreteScheduler()) == STRAIGHT
    assert schedule(D.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)) == STRAIGHT
    with pytest.raises(UserError, match="inverts its sigmas"):
        schedule(D.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


# Pipelines


def test_a_saved_pipeline_is_the_pipeline(tmp_path: Path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    asked = {"guidance": 2.0 * on(prompt="a cat") - 1.0 * on(prompt="grass"), "sampler": DDIM(), "steps": 5}
    saved, held = load(tmp_path), load(pipe)
    assert torch.equal(saved.sample(3, **asked), held.sample(3, **asked))
    assert saved.modality.shape == (4, 8, 8) and list(saved.modality.conditions) == ["prompt"]
    assert load(str(tmp_path), size=(4, 6)).sample(1, **asked).shape == (1, 3, 8, 12)


def test_a_pipeline_of_pixels_is_clamped_as_its_scheduler_does(tmp_path: Path):
    scheduler = D.DDIMScheduler(timestep_spacing="trailing")
    D.DDPMPipeline(unet(num_class_embeds=4), scheduler).save_pretrained(tmp_path)
    model = load(tmp_path, null_class=3)
    clamp = model.modality.codec.project(torch.tensor([[[[-3.0, 0.5, 2.0]]]]))
    assert clamp.flatten().tolist() == [-1, 0.5, 1]
    assert model.modality.conditions["label"].classes == ("0", "1", "2")  # type: ignore[attr-defined]
    labels = torch.tensor([0, 1, 2])
    scheduler.set_timesteps(10)
    x = start(SHAPE)
    with torch.no_grad():
        for t in scheduler.timesteps:
            net = unet(num_class_embeds=4)
            said = 3 * net(x, t, labels).sample - 2 * net(x, t, 0 * labels + 3).sample
            x = scheduler.step(said, t, x, use_clipped_model_output=True).prev_sample
    (mine,) = model.latents(3, {"label": [0, 1, 2]}, guidance=CFG(3.0), sampler=DDIM(), steps=10)
    assert error(mine, x) < 1e-4
    named = load(tmp_path, null_class=3, classes=("cat", "dog", "cow"))
    (same,) = named.latents(3, {"label": ["cat", "dog", "cow"]}, guidance=CFG(3.0), sampler=DDIM(), steps=10)
    assert torch.equal(same, mine)
    with pytest.raises(UserError, match="has 3 classes, and classes= names 2"):
        load(tmp_path, null_class=3, classes=("cat", "dog"))


@pytest.mark.parametrize(
    "settings", [{"scaling_factor": 0.5, "shift_factor": 0.3}, {"latents_mean": [1.0, 2, 3, 4], "latents_std": [1.0, 2, 1, 2]}]
)
def test_latents_are_scaled_and_shifted_as_the_autoencoder_says(settings: dict[str, Any]):
    vae = autoencoder(**settings)
    codec = Latents(vae)
    x0 = start((6, 4, 4, 4))
    column = (1, -1, 1, 1)
    by_channel = "latents_mean" in settings
    factor = settings.get("scaling_factor", vae.config.scaling_factor)
    mean = torch.tensor(settings["latents_mean"]).view(column) if by_channel else settings["shift_factor"]
    deviation = torch.tensor(settings["latents_std"]).view(column) if by_channel else 1.0
    with torch.no_grad():
        theirs = (
            D.image_processor.VaeImageProcessor().postprocess(vae.decode(x0 * deviation / factor + mean).sample, output_type="pt") * 255
        )
        mine = codec.decode(x0)
        assert (mine - theirs).abs().max() <= 0.51 and theirs.std() > 10
        mode = vae.encode(mine / 127.5 - 1).latent_dist.mode()
        torch.testing.assert_close(codec.encode(mine), (mode - mean) * factor / deviation, rtol=1e-4, atol=1e-4)
    assert codec.project(x0) is x0 and not codec.state_dict().keys() - {f"vae.{name}" for name in vae.state_dict()}


def test_what_only_training_has_says_so():
    model = load(D.DDPMPipeline(unet(), D.DDPMScheduler()))
    data, metrics = model.modality.data, model.modality.metrics
    for ask in (
        lambda: len(data.train),
        lambda: data.test.__getitems__([0]),
        data.pinned,
        lambda: metrics.judge(data, "label"),
        lambda: metrics.measure(None, Condition()),
        lambda: metrics.together(None),
        lambda: metrics.flat(None),
    ):
        with pytest.raises(UserError, match="it can only be sampled"):
            ask()
    assert data.shape == (3, 8, 8) and metrics.units == {}


def rewritten(folder: Path, **entries: Any) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"unet": ["pipeline", "Evil"]}, "only classes of diffusers and transformers"),
        ({"unet": ["os", "system"]}, "only classes of diffusers and transformers"),
        ({"unet": ["diffusers", "DDPMPipeline"]}, "only classes of diffusers and transformers"),
        ({"unet": ["diffusers", "utils"]}, "only classes of diffusers and transformers"),
        ({"unet": ["transformers", "pipeline"]}, "only classes of diffusers and transformers"),
        ({"scheduler": ["diffusers", "UNet2DModel"]}, "only classes of diffusers and transformers"),
        ({"scheduler": ["diffusers"]}, "only classes of diffusers and transformers"),
        ({"scheduler": [None, None]}, "no unet or transformer with a scheduler"),
        ({"_class_name": ["pipeline", "Mine"]}, "code of its own"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "several text encoders"),
    ],
)
def test_folders_that_ask_for_other_code_are_refused(tmp_path: Path, entries: dict[str, Any], said: str):
    D.DDPMPipeline(unet(), D.DDPMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text("raise SystemExit('executed')")
    load(tmp_path)
    rewritten(tmp_path, **entries)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_folders_that_are_not_whole_are_refused(tmp_path: Path):
    D.DDPMPipeline(unet(), D.DDPMScheduler()).save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(unet().state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match=r"unet cannot be read .only safetensors are"):
        load(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="holds no saved pipeline"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"no folder someone/model.*hf download someone/model"):
        load("someone/model")
    with pytest.raises(UserError, match="no sample_size: give size="):
        load(D.DDPMPipeline(unet(sample_size=None), D.DDPMScheduler()))


def test_other_models_have_the_conditions_that_their_function_reads(tmp_path: Path):
    torch.manual_seed(0)
    model = unet(class_embed_type="identity")
    specs = {"vector": Vector(32)}

    def keywords(condition: Condition) -> Mapping[str, Tensor]:
        return {"class_labels": condition.values["vector"] * condition.keep["vector"][:, None]}

    with pytest.raises(UserError, match="embeds classes as 'identity': give keywords="):
        load(D.DDPMPipeline(model, D.DDPMScheduler()))
    scheduler = D.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    found = load(D.DDPMPipeline(model, scheduler), keywords=keywords, conditions=specs)
    vector = torch.randn(32)
    (mine,) = found.latents(3, {"vector": vector.tolist()}, guidance=CFG(2.0), sampler=DDIM(), steps=10)
    rows = vector.expand(3, 32)
    theirs = their_loop(scheduler, 10, start(SHAPE), lambda x, t: 2 * model(x, t, rows).sample - model(x, t, 0 * rows).sample)
    assert error(mine, theirs) < 1e-4
