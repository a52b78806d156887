"""MAR: a bidirectional transformer over masked tokens, with a diffusion head (arXiv 2406.11838).

Parameter names are those of the published code, so its checkpoints load key for key. The forward pass takes lists of
positions instead of boolean masks. Attention depends on the position embedding of a token and not on its place in the
sequence, so the known tokens come first, then the tokens to predict, and nothing is scattered.

The same class is also the autoregressive models that the paper compares with (section 3.3): under causal attention the
same blocks read a sequence in generation order, and every position of the sequence predicts the next token.

Shapes: B images, L positions, K positions to predict, V known and R other masked ones, D channels of a token, E and C
the widths of encoder and decoder.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from runtime.model.config import ModelConfig
from training.models.diffusion_head import DiffusionLoss, HeadMLP
from training.models.flow_head import FlowLoss
from training.models.initialization import initialize_linears
from training.models.transformer import NORM_EPS, Block
from training.models.vq_head import VQLoss


class MAR(nn.Module):
    """The masked autoregressive model: encoder, decoder and head.

    Attributes:
        config: The shape of the model.
        diffloss: The head and its loss, see `training.models.diffusion_head`; the name is the published one, whatever
            the head is. `net` of it is the network.
    """

    def __init__(self, **arguments: Any) -> None:
        """Make a model with random weights; the arguments are the fields of `ModelConfig`."""
        super().__init__()
        config = self.config = ModelConfig(**arguments)
        encoder, decoder, sequence = (
            config.encoder_embed_dim,
            config.decoder_embed_dim,
            config.tokens + config.buffer_size,
        )

        self.class_emb = nn.Embedding(config.class_num, encoder)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder))  # the class of unconditional generation

        self.z_proj = nn.Linear(config.token_channels, encoder)
        self.z_proj_ln = nn.LayerNorm(encoder, eps=NORM_EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, sequence, encoder))
        self.encoder_blocks = self._blocks("encoder")
        self.encoder_norm = nn.LayerNorm(encoder, eps=NORM_EPS)

        self.decoder_embed = nn.Linear(encoder, decoder)
        if config.attention == "bidirectional":
            self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, sequence, decoder))
        self.decoder_blocks = self._blocks("decoder")
        self.decoder_norm = nn.LayerNorm(decoder, eps=NORM_EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.tokens, decoder))

        self._initialize()
        self.diffloss: Any = _head(config)

    def _blocks(self, half: str) -> nn.ModuleList:
        config = self.config
        width, depth, heads = (getattr(config, f"{half}_{name}") for name in ("embed_dim", "depth", "num_heads"))
        return nn.ModuleList(
            Block(
                width,
                heads,
                config.mlp_ratio,
                config.attn_dropout,
                config.proj_dropout,
                causal=config.attention == "causal",
            )
            for _ in range(depth)
        )

    def _initialize(self) -> None:
        initialize_linears(self)
        for name, parameter in self.named_parameters():
            if name.endswith("pos_embed_learned") or name in ("class_emb.weight", "fake_latent", "mask_token"):
                nn.init.normal_(parameter, std=0.02)

    @property
    def head_network(self) -> HeadMLP:
        """The network of a head that denoises tokens."""
        network: HeadMLP = self.diffloss.net
        return network

    def class_embedding(self, labels: Tensor) -> Tensor:
        """Return the embeddings [B, E] of labels, int64 [B]; class_num stands for no class."""
        return torch.cat([self.class_emb.weight, self.fake_latent])[labels]

    def predict(self, tokens: Tensor, visible: Tensor, predict: Tensor, rest: Tensor, labels: Tensor) -> Tensor:
        """Run the backbone once, under bidirectional attention; V + K + R = L.

        Args:
            tokens: The known tokens, [B, V, D].
            visible: Their positions, int64 [B, V].
            predict: The positions of the masked tokens to predict, int64 [B, K].
            rest: The positions of the other masked tokens, int64 [B, R]; they take part in attention.
            labels: Int64 [B]; class_num stands for no class.

        Returns:
            The vectors z of the tokens to predict, [B, K, C].
        """
        memory = self._encode(tokens, visible, self.class_embedding(labels))  # [B, buffer + V, C]
        return self._decode(memory, visible, predict, rest)

    def _encode(self, tokens: Tensor, visible: Tensor, class_embedding: Tensor) -> Tensor:
        """Return the encoder's output for the class buffer and the known tokens, [B, buffer + V, C]."""
        buffer = self.config.buffer_size
        positions = self.encoder_pos_embed_learned[0]  # [buffer + L, E]
        x = torch.cat(
            [class_embedding[:, None] + positions[:buffer], self.z_proj(tokens) + positions[buffer:][visible]], dim=1
        )  # [B, buffer + V, E]
        x = self.z_proj_ln(x)
        for block in self.encoder_blocks:
            x = block(x)
        return self.decoder_embed(self.encoder_norm(x))

    def _decode(self, memory: Tensor, visible: Tensor, predict: Tensor, rest: Tensor) -> Tensor:
        """Return z of the tokens to predict, [B, K, C], from the encoder's output."""
        buffer = self.config.buffer_size
        positions = self.decoder_pos_embed_learned[0]  # [buffer + L, C]
        known = memory.shape[1]
        masked = self.mask_token[0] + positions[buffer:][torch.cat([predict, rest], dim=1)]  # [B, K + R, C]
        known_positions = torch.cat(
            [positions[:buffer].expand(memory.shape[0], -1, -1), positions[buffer:][visible]], dim=1
        )
        x = torch.cat([memory + known_positions, masked], dim=1)  # [B, buffer + L, C]
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        last = cast(Block, self.decoder_blocks[-1])
        x = last.rows(x, known, predict.shape[1])  # [B, K, C]
        return self.decoder_norm(x) + self.diffusion_pos_embed_learned[0][predict]

    def predict_next(self, tokens: Tensor, order: Tensor, labels: Tensor) -> Tensor:
        """Predict every token from the tokens before it, under causal attention, in one pass.

        The sequence is the class buffer, then the tokens. In the encoder, an element of the sequence has its own
        position embedding; in the decoder it has that of the next element, which it predicts.

        Args:
            tokens: [B, L, D] in generation order; the last one is not used.
            order: The position of each token, int64 [B, L].
            labels: Int64 [B]; class_num stands for no class.

        Returns:
            The vectors z of all tokens in generation order, [B, L, C].
        """
        buffer = self.config.buffer_size
        buffer_positions = torch.arange(buffer, device=order.device).expand(len(order), -1)
        sequence = torch.cat([buffer_positions, order + buffer], dim=1)  # [B, buffer + L]
        start = self.class_embedding(labels)[:, None].expand(-1, buffer, -1)
        x = torch.cat([start, self.z_proj(tokens[:, :-1])], dim=1)  # [B, buffer + L - 1, E]
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned[0][sequence[:, :-1]])
        for block in self.encoder_blocks:
            x = block(x)
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[0][sequence[:, 1:]]
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x[:, buffer - 1 :]) + self.diffusion_pos_embed_learned[0][order]

    def patchify(self, latents: Tensor) -> Tensor:
        """Return the tokens [B, L, D] of latents [B, C, h, w]; channels are outermost within a token, as published."""
        return patchify(latents, self.config.patch_size)

    def forward(self, latents: Tensor, labels: Tensor, order: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Return the training loss of a batch, a scalar: the mean over the masked tokens (arXiv 2406.11838, section 3).

        The head runs on the masked tokens only; the published code runs it on all and multiplies by the mask.

        Args:
            latents: [B, C, h, w].
            labels: Int64 [B]; class_num stands for no class.
            order: A permutation of the positions of each image, int64 [B, L]. The first K are masked and predicted
                from the others; under causal attention K = L, and each token is predicted from those before it.
            timesteps: Q timesteps for each masked token, [Q, B, K].
            noise: Standard normal, [Q, B, K, D].
        """
        tokens = self.patchify(latents)  # [B, L, D]
        repeats, _, masked = timesteps.shape
        predict, visible = order[:, :masked], order[:, masked:]

        def gather(positions: Tensor) -> Tensor:
            return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))

        if self.config.attention == "causal":
            z = self.predict_next(gather(predict), predict, labels)  # [B, L, C]
        else:
            z = self.predict(gather(visible), visible, predict, predict[:, :0], labels)  # [B, K, C]
        target = gather(predict).flatten(0, 1).repeat(repeats, 1)  # [N, D], N = Q B K
        return self.diffloss(target, z.flatten(0, 1), timesteps.flatten(), noise.flatten(0, 2)).mean()


def patchify(latents: Tensor, patch: int) -> Tensor:
    """Return the tokens [B, n, D] of latents [B, C, h, w]; channels are outermost within a token, as published."""
    rows = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, C, h, p, w, p]
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _head(config: ModelConfig) -> DiffusionLoss | FlowLoss | VQLoss:
    """Return the head of a model, with its loss."""
    channels, width, depth = config.token_channels, config.diffloss_w, config.diffloss_d
    if config.head == "vq":
        return VQLoss(channels, config.decoder_embed_dim, width, depth, config.codebook_size)
    loss = FlowLoss if config.head == "flow" else DiffusionLoss
    return loss(channels, config.decoder_embed_dim, width, depth)
