"""Captions and clips must say the same thing, or every prompt-following figure is wrong."""

from __future__ import annotations

import torch

from qbench import prompts, world


def test_caption_and_parse_are_inverse_for_every_scene_and_template() -> None:
    for scene in world.scenes():
        assert world.parse(scene.caption(0)) == scene == world.parse(scene.caption(1))


def test_text_from_elsewhere_is_not_a_scene() -> None:
    assert world.parse("a red fox trots across a snowy meadow") is None


def test_a_tenth_is_held_out_and_every_single_value_is_still_seen() -> None:
    scenes = world.scenes()
    seen = [scene for scene in scenes if not world.held_out(scene)]
    assert abs(len(seen) / len(scenes) - 0.9) < 0.01
    for name, values in world.ATTRIBUTES.items():
        assert {getattr(scene, name) for scene in seen} == set(values)


def _centre(clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre x, y and area of what is not background, by frame; white on black."""
    mask = clip.mean(1) > 0.5
    grid = torch.arange(world.SIDE).float()
    area = mask.sum((1, 2)).float()
    return (mask * grid).sum((1, 2)) / area, (mask * grid[:, None]).sum((1, 2)) / area, area


def test_rendered_motion_is_what_the_caption_says() -> None:
    found = {}
    for motion in world.MOTIONS:
        scene = world.Scene("circle", "white", "black", motion, "large")
        found[motion] = _centre(world.render_scenes([scene], seed=3)[0])
    x, y, area = ({k: v[i][-1] - v[i][0] for k, v in found.items()} for i in range(3))
    assert x["left"] < -15
    assert x["right"] > 15
    assert y["up"] < -15
    assert y["down"] > 15
    assert area["grow"] > 200
    assert area["shrink"] < -200
    spread = {k: (v[0].max() - v[0].min(), v[1].max() - v[1].min()) for k, v in found.items()}
    assert min(spread["orbit"]) > 15
    assert spread["swing"][0] > 15
    assert spread["swing"][1] < 1


def test_circle_has_its_closed_form_area() -> None:
    scene = world.Scene("circle", "white", "black", "swing", "large")
    _, _, area = _centre(world.render_scenes([scene], seed=0)[0])
    radius = 0.9 * world.SIZES["large"]
    assert torch.allclose(area, torch.full_like(area, torch.pi * radius**2), rtol=0.03)


def test_a_scene_is_the_same_at_every_length() -> None:
    """Rendered large and shrunk it is the clip rendered small, edges apart."""
    scenes = [s for s in world.scenes() if world.held_out(s)][::230]
    small = world.render_scenes(scenes, 5)
    assert torch.equal(world.shrunk(small), small)
    for frames, side in world.LENGTHS[1:]:
        clips = world.render_scenes(scenes, 5, frames, side)
        assert clips.shape == (len(scenes), frames, 3, side, side)
        error = (world.shrunk(clips) - small).square().mean()
        assert -10 * torch.log10(error) > 38


def test_edges_stay_as_sharp_in_pixels_and_areas_grow() -> None:
    scene = world.Scene("circle", "white", "black", "swing", "large")
    clip = world.render_scenes([scene], 0, 17, 192)[0]
    radius = 3 * 0.9 * world.SIZES["large"]
    area = (clip.mean(1) > 0.5).sum((1, 2)).float()
    assert torch.allclose(area, torch.full_like(area, torch.pi * radius**2), rtol=0.01)
    fading = ((clip.mean(1) > 0.2) & (clip.mean(1) < 0.8)).sum((1, 2))
    assert fading.max() < 2 * torch.pi * radius * world.EDGE


def test_shipped_prompts_of_the_world_all_parse_and_are_balanced() -> None:
    scenes = [world.parse(text) for text in prompts.load("world-v1").prompts]
    assert len(set(scenes)) == 256
    assert None not in scenes
    first = [scene for scene in scenes[:12] if scene]
    assert {scene.colour for scene in first} == set(world.COLOURS)
    assert {scene.motion for scene in first} == set(world.MOTIONS)
