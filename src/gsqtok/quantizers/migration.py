"""Names of vector-quantize-pytorch, and what does the same here: unknown options and methods are answered with it.

Each value ends a sentence: "for vector-quantize-pytorch's 'heads' take VALUE", or where it begins with "not":
"vector-quantize-pytorch's 'eps' is VALUE".
"""

from __future__ import annotations

CLASSES = {
    "VectorQuantize": "'ema_vq', or with learnable_codebook=True 'vq'",
    "ResidualVQ": "'rvq'",
    "GroupedResidualVQ": "'rvq' with groups",
    "ResidualSimVQ": "not here: 'simvq' has one stage, and the stages of 'rvq' learn their codebooks directly",
    "SimVQ": "'simvq'",
    "FSQ": "'fsq'",
    "ResidualFSQ": "'rfsq'",
    "GroupedResidualFSQ": "'rfsq' with groups",
    "LFQ": "'lfq', or with spherical=True 'bsq'",
    "ResidualLFQ": "'rlfq'",
    "GroupedResidualLFQ": "'rlfq' with groups",
    "RandomProjectionQuantizer": "'random_sphere' with codebook_dim; its maps are learnt unless requires_grad_(False)",
    "LatentQuantize": "not here: 'fsq' has levels that are fixed, not learnt",
    "FSP": "not here; 'fsq' is the nearest method",
    "HierarchicalVQ": "not here for training: gsqtok opens VAR's weights, which have such scales",
    "BinaryMapper": "not here; 'lfq' and 'bsq' take the signs of channels",
    "EvoLFQ": "not here",
    "Sequential": "not here: torch.nn.Sequential, with the quantizer called by itself",
}

_STAGES = "stages of 'rvq', 'rsq', 'rfsq' and 'rlfq'"
_EXACT = "not needed: quantizers compute in float32 whatever the latent is"
_ONE_DIMENSION = "not needed: the last dimension of indices is always tokens, also a single one"

OPTIONS = {
    # VectorQuantize
    "heads": "groups; dim is then that of all groups together",
    "separate_codebook_per_head": "codebooks=\"separate\" of 'gsq'",
    "decay": "decay of 'ema_vq'",
    "eps": "not needed: a codeword without latents stays where it is, so that nothing is divided by 0",
    "freeze_codebook": "quantizer.requires_grad_(False)",
    "kmeans_init": 'init="kmeans"',
    "kmeans_iters": 'not an option: init="kmeans" makes 8 rounds',
    "sync_kmeans": 'not an option: init="kmeans" takes the latents of all ranks',
    "use_cosine_sim": "metric=\"cosine\" of 'vq' and 'ema_vq'; 'gsq' looks up by cosine anyway",
    "layernorm_after_project_in": "not here: put torch.nn.LayerNorm before the quantizer",
    "threshold_ema_dead_code": "revive_after of 'ema_vq': the steps without use after which a codeword moves",
    "channel_last": "channel_first=True, when the quantizer is called",
    "accept_image_fmap": "channel_first=True, when the quantizer is called",
    "accept_3d_fmap": "channel_first=True, when the quantizer is called",
    "commitment_use_cross_entropy_loss": "not here; 'ibq' learns by the whole softmax",
    "orthogonal_reg_weight": "orthogonal_weight",
    "orthogonal_reg_active_codes_only": "not here: orthogonal_weight looks at all codewords, without a V x V matrix",
    "orthogonal_reg_max_codes": "not needed: orthogonal_weight looks at all codewords, without a V x V matrix",
    "codebook_diversity_loss_weight": "not here; 'lfq', 'bsq' and 'ibq' have entropy losses",
    "codebook_diversity_temperature": "not here; 'lfq', 'bsq' and 'ibq' have entropy losses",
    "stochastic_sample_codes": "not here: the search is exact and deterministic",
    "sample_codebook_temp": "not here: the search is exact and deterministic",
    "straight_through": 'gradient="straight_through", which is the default',
    "rotation_trick": 'gradient="rotation"',
    "directional_reparam": "the method 'diveq'",
    "directional_reparam_variance": "noise of 'diveq'",
    "diveq": "the method 'diveq'",
    "sync_codebook": "not an option: ranks always agree",
    "ema_update": "the method: 'ema_vq' moves codewords by averages, 'vq' and 'gsq' learn them by gradient",
    "vq_bridge": "the method 'fvq'",
    "manual_ema_update": "not needed: codewords move when you call quantizer.update(latent, indices), and only then",
    "learnable_codebook": "the method: 'vq' and 'gsq' learn codewords by gradient, 'ema_vq' moves them by averages",
    "in_place_codebook_optimizer": "not here: the codebook is a parameter of your own optimizer",
    "manual_in_place_optimizer_update": "not here: the codebook is a parameter of your own optimizer",
    "affine_param": "not here",
    "affine_param_batch_decay": "not here",
    "affine_param_codebook_decay": "not here",
    "sync_affine_param": "not here",
    "sync_update_v": "not here",
    "return_zeros_for_masked_padding": "not an option: masked positions always are 0, with index -1",
    "route_gradients_to_input": "not an option: latent.detach() stops the gradient",
    # residual methods
    "num_quantizers": _STAGES,
    "quantize_dropout": f"stage_dropout, a share of the examples, with the {_STAGES}",
    "quantize_dropout_cutoff_index": "not here: stage_dropout draws from one stage to all",
    "quantize_dropout_multiple_of": "not here: stage_dropout draws from one stage to all",
    "shared_codebook": "not here: each stage has a codebook of its own",
    "implicit_neural_codebook": "not here",
    "mlp_kwargs": "not here",
    "beam_size": "not here: stages are greedy",
    "eval_beam_size": "not here: stages are greedy",
    "beam_score_quantizer_weights": "not here: stages are greedy",
    "quant_grad_frac": "not here",
    "is_channel_first": "channel_first=True, when the quantizer is called",
    # FSQ, LFQ, SimVQ
    "num_codebooks": "groups; dim, or codebook_dim, is then that of all groups together",
    "keep_num_codebooks_dim": _ONE_DIMENSION,
    "scale": "not here: levels lie in [-1, 1]",
    "allowed_dtypes": _EXACT,
    "force_quantization_f32": _EXACT,
    "projection_has_bias": "not an option: the maps of codebook_dim have a bias",
    "has_projections": "codebook_dim, which makes them",
    "return_indices": "not an option: indices are always in the output",
    "preserve_symmetry": "not here",
    "noise_dropout": "not here",
    "bound_hard_clamp": "not here: 'fsq' squashes by tanh, as its paper does",
    "soft_clamp_input_value": "not here",
    "orthogonal_rotation": "not here",
    "entropy_loss_weight": "entropy_weight",
    "commitment_loss_weight": "commitment_weight",
    "diversity_gamma": "diversity",
    "straight_through_activation": "not here: apply it before the quantizer",
    "codebook_scale": "not here: the codewords of 'lfq' are -1 and 1, those of 'bsq' have length 1",
    "frac_per_sample_entropy": "not needed: the entropy of a sample is computed in closed form",
    "cosine_sim_project_in": "not here",
    "cosine_sim_project_in_scale": "not here",
    "experimental_softplus_entropy_loss": "not here",
    "entropy_loss_offset": "not here",
    "spherical": "the method 'bsq'",
    "channel_first": "channel_first=True, when the quantizer is called",
    "codebook_transform": "not an option: 'simvq' has one linear layer, as in its paper",
    "init_fn": "not an option of 'simvq'",
    "input_to_quantize_commit_loss_weight": "commitment_weight",
    "frozen_codebook_dim": "not an option of 'simvq': its frozen codewords have the channels of a group",
}


def answer(name: str, names: dict[str, str]) -> str | None:
    """Say in a sentence what a name of vector-quantize-pytorch is here; None for a name that is none of its.

    Args:
        name: of an option, or of a class.
        names: ``OPTIONS`` or ``CLASSES``.
    """
    if name not in names:
        return None
    if names[name].startswith("not "):
        return f"there is no '{name}'; vector-quantize-pytorch's is {names[name]}"
    return f"there is no '{name}'; for vector-quantize-pytorch's take {names[name]}"
