"""The official checkpoint format from its description alone: writes files, and computes what they mean.

It shares no code with the package: each layer is a call of torch.nn.functional on weights by their official names.
"""

import pickle

import torch
from torch.nn import functional as F

DEFAULTS = {
    "input_channels": 3,
    "hidden_channels": 32,
    "encoder_layer_configs": (1, 1, 1),
    "decoder_layer_configs": (1, 1, 1),
    "channel_multipliers": (1, 2),
    "mid_block_attn": False,
    "attention_resolutions": (),
    "embedding_dim": 4,
    "use_adaptive_norm": False,
    "use_learnable_up_down_sample": False,
    "residual_conv_kernel_size": 3,
    "input_conv_kernel_size": 3,
    "output_conv_kernel_size": 3,
    "dropout_probability": 0.0,
    "quantizer_aux_loss_weight": 1.0,
    "quantizer_config": {"quantize_type": "vq", "embed_dim": 4, "num_embed": 64, "use_l2_norm": True},
}


def arguments(**changes):
    """The constructor's keyword arguments of a tiny f2 model, with changes."""
    return DEFAULTS | changes


def layers(config, part):
    """The flat list of blocks: (kind, channels in, channels out)."""
    channels, multipliers = config["hidden_channels"], config["channel_multipliers"]
    attention, found = config["attention_resolutions"], []

    def residual(before, after):
        found.append(("residual", before, after))

    def middle(width, count):
        for i in range(count):
            if i and config["mid_block_attn"]:
                found.append(("attention", width, width))
            residual(width, width)

    def level_blocks(i, width, count):
        if width != channels * multipliers[i]:
            residual(width, channels * multipliers[i])
            width = channels * multipliers[i]
        for _ in range(count):
            residual(width, width)
            if 2**i in attention:
                found.append(("attention", width, width))
        return width

    counts = config[f"{part}_layer_configs"]
    last = len(multipliers) - 1
    if part == "encoder":
        width = channels
        for i in range(last + 1):
            width = level_blocks(i, width, counts[i])
            if i < last:
                found.append(("down", width, width))
        middle(width, counts[-1])
    else:
        width = channels * multipliers[-1]
        middle(width, counts[-1])
        if config["use_adaptive_norm"]:
            found.append(("adaptive", width, width))
        for i in range(last, -1, -1):
            width = level_blocks(i, width, counts[:-1][i - last - 1])
            if i > 0:
                found.append(("space" if config["use_learnable_up_down_sample"] else "up", width, width))
                if config["use_adaptive_norm"]:
                    found.append(("adaptive", width, width))
    return found


def random_state(config, seed=0):
    """Random weights by their official names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def draw(name, *shape, around=0.0):
        fan_in = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 25
        state[name] = around + torch.randn(shape, generator=generator) / fan_in**0.5

    def conv(name, before, after, kernel):
        draw(f"{name}.weight", after, before, kernel, kernel)
        draw(f"{name}.bias", after)

    def norm(name, width):
        draw(f"{name}.weight", width, around=1.0)
        draw(f"{name}.bias", width)

    dim, channels, multipliers = config["embedding_dim"], config["hidden_channels"], config["channel_multipliers"]
    for part in ("encoder", "decoder"):
        blocks = layers(config, part)
        before = 3 if part == "encoder" else dim
        conv(f"{part}.conv_in", before, channels if part == "encoder" else channels * multipliers[-1], 3)
        for i, (kind, c, after) in enumerate(blocks):
            name = f"{part}.blocks.{i}"
            if kind == "residual":
                norm(f"{name}.net.0", c)
                conv(f"{name}.net.2", c, after, 3)
                norm(f"{name}.net.3", after)
                conv(f"{name}.net.6", after, after, 3)
                if c != after:
                    conv(f"{name}.skip", c, after, 1)
            elif kind == "attention":
                norm(f"{name}.norm", c)
                conv(f"{name}.qkv_conv", c, 3 * c, 1)
                conv(f"{name}.proj_conv", c, c, 1)
            elif kind == "adaptive":
                for which, around in (("gamma", 1.0), ("beta", 0.0)):
                    draw(f"{name}.{which}.weight", c, dim)
                    draw(f"{name}.{which}.bias", c, around=around)
            else:
                conv(f"{name}.conv", c, 4 * c if kind == "space" else c, 3)
        final = f"{part}.{'fianl' if part == 'encoder' else 'final'}_layers"
        width = channels * (multipliers[-1] if part == "encoder" else multipliers[0])
        norm(f"{final}.0", width)
        conv(f"{final}.2", width, *((dim, 1) if part == "encoder" else (3, 3)))
    options = config["quantizer_config"]
    draw("quantizers.codebook.weight", options["num_embed"], dim // options.get("num_group", 1))
    return state


def write(path, config, state=None, pickled=None):
    """Write a checkpoint.pt; returns its state."""
    state = random_state(config) if state is None else state
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": state, "config": pickle.dumps(config) if pickled is None else pickled}, path)
    return state


def run(part, config, state, x):
    """Encoder (images to latent) or decoder (quantized latent to images)."""
    latent = x

    def conv(name, x, **options):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(name, x, eps=1e-5):
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps)

    x = conv(f"{part}.conv_in", x, padding=1)
    for i, (kind, _, _) in enumerate(layers(config, part)):
        name = f"{part}.blocks.{i}"
        if kind == "residual":
            h = conv(f"{name}.net.2", F.silu(norm(f"{name}.net.0", x)), padding=1)
            h = conv(f"{name}.net.6", F.silu(norm(f"{name}.net.3", h)), padding=1)
            x = h + (conv(f"{name}.skip", x) if f"{name}.skip.weight" in state else x)
        elif kind == "attention":
            b, c, height, width = x.shape
            q, k, v = conv(f"{name}.qkv_conv", norm(f"{name}.norm", x, 1e-6)).reshape(b, 3, c, -1).unbind(1)
            weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / c**0.5, -1)
            x = x + conv(f"{name}.proj_conv", torch.einsum("bnm,bcm->bcn", weights, v).reshape(b, c, height, width))
        elif kind == "adaptive":
            values = latent.flatten(2)
            scale = F.linear((values.var(2) + 1e-6).sqrt(), state[f"{name}.gamma.weight"], state[f"{name}.gamma.bias"])
            bias = F.linear(values.mean(2), state[f"{name}.beta.weight"], state[f"{name}.beta.bias"])
            x = scale[:, :, None, None] * F.group_norm(x, 32, eps=1e-6) + bias[:, :, None, None]
        elif kind == "down":
            x = conv(f"{name}.conv", x, stride=2, padding=1)
        elif kind == "up":
            x = conv(f"{name}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
        else:
            x = conv(f"{name}.conv", x, padding=1)
            b, c, height, width = x.shape
            out = x.new_empty(b, c // 4, 2 * height, 2 * width)
            for row in (0, 1):
                for column in (0, 1):
                    quarter = 2 * row + column
                    out[:, :, row::2, column::2] = x[:, quarter * (c // 4) : (quarter + 1) * (c // 4)]
            x = out
    final = f"{part}.{'fianl' if part == 'encoder' else 'final'}_layers"
    x = F.silu(norm(f"{final}.0", x))
    return conv(f"{final}.2", x, padding=0 if part == "encoder" else 1)


def quantize(config, state, latent):
    """Codes in the official shape, raw codewords (B, D, h, w), and the auxiliary loss."""
    options = config["quantizer_config"]
    codebook = state["quantizers.codebook.weight"]
    d = codebook.shape[1]
    z = latent.movedim(1, -1).unflatten(-1, (-1, d))

    def normalised(x):
        if options.get("force_1d_clip"):
            return x.clamp(-1, 1)
        if options.get("use_l2_norm"):
            return x / x.norm(dim=-1, keepdim=True)
        if options.get("use_l1_norm"):
            return x / x.abs().sum(-1, keepdim=True)
        return x

    zn = normalised(z)
    distances = (zn.double().unsqueeze(-2) - normalised(codebook).double()).square().sum(-1)
    codes = distances.argmin(-1)
    raw = codebook[codes]
    weight = options.get("commitment_loss_weight", 0.25)
    loss = (1 + weight) * (raw - zn).square().mean()
    value = raw.flatten(-2).movedim(-1, 1)
    return codes[..., 0] if options["quantize_type"] == "vq" else codes, value, loss
