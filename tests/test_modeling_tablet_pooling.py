"""What a head reads, what of the last layer is computed for it, and tokens standardised over time."""

import pytest
import torch

from tablet_hf import TabletConfig, TabletForMaskedTokenModeling, TabletForSequenceClassification, TabletModel
from tablet_hf.modeling_tablet import standardize_over_frames

SIZES = {"token_size": 12, "grid_size": 2, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "intermediate_size": 48, "initializer_range": 0.2}
PADDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture
def tokens():
    return torch.randn(2, 5, 8, 12, generator=torch.Generator().manual_seed(0))


def build(model_class=TabletForSequenceClassification, **settings):
    torch.manual_seed(0)
    task = {} if model_class is not TabletForSequenceClassification else {"num_labels": 1}
    task |= {"problem_type": "multi_label_classification"} if task else {}
    return model_class(TabletConfig(**SIZES | task | settings)).eval()


class TestClsOnly:
    """For a head on the CLS state the last layer computes that state alone, with the same result."""

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
    @pytest.mark.parametrize("position", ["none", "rope", "spatiotemporal_rope"])
    def test_the_cls_state_is_the_same(self, tokens, attention, mask, position):
        model = build(TabletModel, position_embedding_type=position, use_output_norm=True)
        model.set_attn_implementation(attention)
        whole = model(tokens, attention_mask=mask, repetition_time=2.0)
        alone = model(tokens, attention_mask=mask, repetition_time=2.0, cls_only=True)
        assert alone.last_hidden_state.shape == (2, 1, 32)
        torch.testing.assert_close(alone.pooler_output, whole.pooler_output)

    def test_gradients_are_the_same(self, tokens):
        gradients = []
        for can_leave_out in (True, False):
            model = build().train()
            outputs = model.tablet(tokens, repetition_time=2.0, cls_only=can_leave_out)
            model.classifier(outputs.pooler_output).sum().backward()
            gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)

    def test_less_is_computed(self, tokens):
        seen = []
        model = build()
        for layer in model.tablet.layers:
            layer.mlp.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
        model(tokens, repetition_time=2.0)
        assert seen == [41, 41, 1]

    @pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
    def test_all_states_are_there_where_they_are_asked_for(self, tokens, asked):
        model = build()
        model.set_attn_implementation("eager")
        outputs = model(tokens, repetition_time=2.0, **{asked: True})
        states = outputs.hidden_states if asked == "output_hidden_states" else outputs.attentions
        assert states[-1].shape[-2] == 41

    def test_it_needs_the_cls_state(self, tokens):
        with pytest.raises(ValueError, match="cls_only"):
            build(TabletModel, pooling_type="mean")(tokens, repetition_time=2.0, cls_only=True)


@pytest.mark.parametrize("pooling_type", ["mean", "variability"])
def test_padding_does_not_count(tokens, pooling_type):
    model = build(pooling_type=pooling_type)
    short = model(tokens[1:, :3], repetition_time=2.0).logits
    padded = model(tokens, attention_mask=PADDED, repetition_time=2.0).logits[1:]
    torch.testing.assert_close(short, padded)


class TestMeanPooling:
    def test_is_the_mean_of_valid_token_states(self, tokens):
        model = build(TabletModel, pooling_type="mean")
        outputs = model(tokens, attention_mask=PADDED, repetition_time=2.0)
        for run, frames in ((0, 5), (1, 3)):
            expected = outputs.last_hidden_state[run, 1 : 1 + 8 * frames].mean(0)
            torch.testing.assert_close(outputs.pooler_output[run], expected)
        whole = model(tokens, repetition_time=2.0)
        torch.testing.assert_close(whole.pooler_output, whole.last_hidden_state[:, 1:].mean(1))


class TestVariabilityPooling:
    def test_is_the_deviation_of_each_cell_over_valid_frames(self, tokens):
        model = build(TabletModel, pooling_type="variability")
        outputs = model(tokens, attention_mask=PADDED, repetition_time=2.0)
        assert outputs.pooler_output.shape == (2, model.config.pooled_size) == (2, 8 * 32)
        for run, frames in ((0, 5), (1, 3)):
            for cell in range(8):
                states = outputs.last_hidden_state[run, 1 + cell : 1 + 8 * frames : 8]
                found = outputs.pooler_output[run, 32 * cell : 32 * (cell + 1)]
                torch.testing.assert_close(found, states.std(0, correction=0), atol=1e-3, rtol=1e-3)

    def test_one_frame_has_finite_gradients(self, tokens):
        model = build(pooling_type="variability").train()
        model(tokens[:, :1], repetition_time=2.0, labels=torch.tensor([0, 1])).loss.backward()
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


class TestStandardizedTokens:
    @pytest.mark.parametrize("with_mask", [False, True])
    @pytest.mark.parametrize("frame_mask", [None, PADDED.bool()], ids=["whole", "padded"])
    def test_by_a_slow_count(self, tokens, with_mask, frame_mask):
        hidden = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(1)) < 0.3 if with_mask else None
        found, means, stds = standardize_over_frames(tokens, frame_mask, hidden)
        for run in range(2):
            frames = [t for t in range(5) if frame_mask is None or frame_mask[run, t]]
            counted = {cell: [t for t in frames if hidden is None or not hidden[run, t, cell]] for cell in range(8)}
            squares, number = 0.0, 0
            for cell, moments in counted.items():
                mean = tokens[run, moments or frames, cell].mean(0)
                torch.testing.assert_close(means[run, 0, cell], mean)
                squares += float((tokens[run, moments, cell] - mean).square().sum())
                number += len(moments) * 12
            assert float(stds[run]) == pytest.approx((squares / number) ** 0.5, rel=1e-5)
            torch.testing.assert_close(found[run], (tokens[run] - means[run]) / stds[run])

    @pytest.mark.parametrize("frame_mask", [None, PADDED.bool()], ids=["whole", "padded"])
    def test_a_cell_hidden_in_all_frames_has_its_own_mean(self, tokens, frame_mask):
        hidden = torch.zeros(2, 5, 8, dtype=torch.bool)
        hidden[:, :, 3] = True
        found, means, stds = standardize_over_frames(tokens + 50, frame_mask, hidden)
        for run in range(2):
            frames = 5 if frame_mask is None else int(frame_mask[run].sum())
            mean = (tokens[run, :frames, 3] + 50).mean(0)
            torch.testing.assert_close(means[run, 0, 3], mean)
            torch.testing.assert_close(found[run, :frames, 3], (tokens[run, :frames, 3] + 50 - mean) / stds[run, 0])

    def test_a_run_that_stands_still_is_zeros(self):
        still = torch.randn(1, 1, 8, 12).expand(1, 5, 8, 12)
        found, _, _ = standardize_over_frames(still, None)
        torch.testing.assert_close(found, torch.zeros_like(found), atol=0.01, rtol=0)

    def test_anatomy_and_scale_do_not_matter_but_how_far_cells_swing_does(self, tokens):
        model = build(standardize_tokens=True, use_feature_norm=False, position_embedding_type="none")
        # The norms within the network see how large a token is by what it is added to, which training finds.
        torch.nn.init.normal_(model.tablet.embeddings.projection.bias)
        anatomy = 30 * torch.randn(2, 1, 8, 12)
        logits = model(tokens).logits
        torch.testing.assert_close(model(7 * tokens + anatomy).logits, logits, atol=1e-4, rtol=1e-3)
        one_cell = tokens.clone()
        one_cell[:, :, 0] *= 4
        assert (model(one_cell).logits - logits).abs().max() > 1e-3

    def test_padding_and_hidden_tokens_do_not_count(self, tokens):
        model = build(standardize_tokens=True, use_feature_norm=False)
        garbage = tokens.clone()
        garbage[1, 3:] = 1e4
        first, second = (model(each, attention_mask=PADDED, repetition_time=2.0).logits for each in (tokens, garbage))
        torch.testing.assert_close(first, second)
        masked = build(TabletForMaskedTokenModeling, standardize_tokens=True, use_feature_norm=False)
        hidden = torch.zeros(2, 5, 8, dtype=torch.bool)
        hidden[0, 2, 3] = True
        other = tokens.clone()
        other[0, 2, 3] = 50.0
        guesses = [masked(each, repetition_time=2.0, bool_masked_pos=hidden) for each in (tokens, other)]
        torch.testing.assert_close(guesses[0].reconstruction, guesses[1].reconstruction)
        assert guesses[1].loss > guesses[0].loss
