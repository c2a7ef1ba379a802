"""PyTorch twin of the networks, losses and methods, used to make and to check the golden files.

NCHW, any float type. `state_dict` keys are the names used in checkpoints.

    AE, AAAE:   mean((D(mu) - target)^2),             mu = P(E(input))
    VAE, AAVAE: mean_b(beta * KL_b - log p(x_b | z_b)), z = mu + std * eps, std = exp(logvar / 2) + 1e-6
    SimCLR:     NT-Xent of z = P(E(view)), the view holding two of each image: row b and row B + b are of image b

AE and VAE encode the original; AAAE, AAVAE and SimCLR encode the view. The target is the original unless `target="view"`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

METHODS = {
    # name: (encodes the view, samples the latent, default beta)
    "ae": (False, False, 0.0),
    "vae": (False, True, 1.0),
    "aaae": (True, False, 0.0),
    "aavae": (True, True, 0.0),
    "simclr": (True, False, 0.0),
}
ENCODER_BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3]}
DECODER_BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 6, 4, 3], "resnet50": [3, 6, 4, 3]}


def is_bottleneck(arch):
    return arch == "resnet50"


def conv(cin, cout, k, stride=1, bias=False):
    return nn.Conv2d(cin, cout, k, stride, padding=k // 2, bias=bias)


# ---------------------------------------------------------------- encoder


class EncoderBasicBlock(nn.Module):
    expansion = 1

    def __init__(self, cin, planes, stride, downsample):
        super().__init__()
        self.conv1, self.bn1 = conv(cin, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3), nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class EncoderBottleneck(nn.Module):
    expansion = 4

    def __init__(self, cin, planes, stride, downsample):
        super().__init__()
        self.conv1, self.bn1 = conv(cin, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, planes * 4, 1), nn.BatchNorm2d(planes * 4)
        self.downsample = downsample

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Encoder(nn.Module):
    """Stem, four stages, global average pool. Stems: cifar 3x3/1; stl 7x7/2; imagenet 7x7/2 then max pool 3x3/2."""

    def __init__(self, arch, width=64, stem="cifar"):
        super().__init__()
        block = EncoderBottleneck if is_bottleneck(arch) else EncoderBasicBlock
        self.stem = stem
        self.conv1 = conv(3, width, 3) if stem == "cifar" else conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        cin = width
        for i, n in enumerate(ENCODER_BLOCKS[arch]):
            planes = width << i
            cout = planes * block.expansion
            blocks = []
            for b in range(n):
                stride = 2 if b == 0 and i > 0 else 1
                down = None
                if stride != 1 or cin != cout:
                    down = nn.Sequential(conv(cin, cout, 1, stride), nn.BatchNorm2d(cout))
                blocks.append(block(cin, planes, stride, down))
                cin = cout
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.features = cin

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, 2, 1)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3))


# ---------------------------------------------------------------- projection


class Projection(nn.Module):
    """(mu, logvar) heads on a hidden layer."""

    def __init__(self, h, latent):
        super().__init__()
        self.first_layer = nn.Sequential(nn.Linear(h, h), nn.BatchNorm1d(h), nn.ReLU())
        self.mu = nn.Linear(h, latent, bias=False)
        self.logvar = nn.Linear(h, latent, bias=False)

    def forward(self, h):
        x = self.first_layer(h)
        return self.mu(x), self.logvar(x)


class DeterministicProjection(nn.Module):
    def __init__(self, h, latent):
        super().__init__()
        self.projection_head = nn.Sequential(
            nn.Linear(h, h), nn.BatchNorm1d(h), nn.ReLU(), nn.Linear(h, latent, bias=False)
        )

    def forward(self, h):
        return self.projection_head(h), None


# ---------------------------------------------------------------- decoder


class Upsample(nn.Module):
    """Nearest, either by a factor or to a fixed size."""

    def __init__(self, size=None, factor=None):
        super().__init__()
        self.size, self.factor = size, factor

    def forward(self, x):
        return F.interpolate(x, size=self.size, scale_factor=self.factor, mode="nearest")


class DecoderBlock(nn.Module):
    def __init__(self, cin, planes, bottleneck, up):
        super().__init__()
        cout = planes * (4 if bottleneck else 1)
        self.bottleneck = bottleneck
        self.up = up if up is not None else nn.Identity()
        if bottleneck:
            self.conv1 = conv(cin, planes, 1, bias=True)
            self.conv2 = conv(planes, planes, 3, bias=True)
            self.conv3 = conv(planes, cout, 1, bias=True)
        else:
            self.conv1 = conv(cin, planes, 3, bias=True)
            self.conv2 = conv(planes, planes, 3, bias=True)
        self.upsample = None
        if up is not None:
            self.upsample = nn.Sequential(up, conv(cin, cout, 1, bias=True))
        elif cin != cout:
            self.upsample = nn.Sequential(conv(cin, cout, 1, bias=True))

    def forward(self, x):
        if self.bottleneck:
            y = F.relu(self.conv1(x))
            y = F.relu(self.conv2(self.up(y)))
            y = self.conv3(y)
        else:
            y = F.relu(self.conv1(self.up(x)))
            y = self.conv2(y)
        return F.relu(y + (x if self.upsample is None else self.upsample(x)))


class Decoder(nn.Module):
    """No BatchNorm. Every stage's first block upsamples: stage 1 to image/8 (image/16 behind a strided stem), then by 2."""

    def __init__(self, arch, latent, image, width=64, stem="cifar"):
        super().__init__()
        bottleneck = is_bottleneck(arch)
        expansion = 4 if bottleneck else 1
        h = 8 * width * expansion
        self.h, self.last_up = h, stem != "cifar"
        self.linear_projection1 = nn.Linear(latent, h)
        self.linear_projection2 = nn.Linear(h, h)
        self.conv1 = conv(h // 16, h, 1, bias=True)
        cin = h
        for i, n in enumerate(DECODER_BLOCKS[arch]):
            planes = 4 * width >> i
            blocks = []
            for b in range(n):
                up = None
                if b == 0:
                    up = (
                        Upsample(size=image // (16 if self.last_up else 8))
                        if i == 0
                        else Upsample(factor=2)
                    )
                blocks.append(DecoderBlock(cin, planes, bottleneck, up))
                cin = planes * expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.conv2 = conv(cin, width, 3, bias=True)
        self.final_conv = conv(width, 3, 3, bias=True)

    def forward(self, z):
        x = F.relu(self.linear_projection1(z))
        x = F.relu(self.linear_projection2(x))
        x = F.relu(self.conv1(x.view(len(x), self.h // 16, 4, 4)))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        x = F.relu(self.conv2(x))
        if self.last_up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.final_conv(x)


# ---------------------------------------------------------------- losses


def gaussian_log_likelihood(x_hat, x, log_scale):
    """log N(x; x_hat, scale) summed over (c, h, w): one number per example."""
    scale = torch.exp(log_scale / 2) + 1e-6
    log_p = -((x - x_hat) ** 2) / (2 * scale**2) - torch.log(scale) - 0.5 * math.log(2 * math.pi)
    return log_p.flatten(1).sum(1)


def kl_to_standard_normal(mu, std):
    return (0.5 * (mu**2 + std**2 - 1) - torch.log(std)).sum(1)


def std_of(logvar):
    return torch.exp(logvar / 2) + 1e-6


def nt_xent(z, temperature):
    """(loss, share of the rows whose positive is the most similar): a cross-entropy over the other rows."""
    u = F.normalize(z, dim=1)
    logits = (u @ u.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    positive = torch.arange(len(z)).roll(len(z) // 2)
    return F.cross_entropy(logits, positive), (logits.argmax(1) == positive).to(z.dtype).mean()


# ---------------------------------------------------------------- measurements (by torch.distributions where it can)


def posterior(mu, logvar):
    return torch.distributions.Normal(mu, std_of(logvar))


def log_weights(model, x, target, eps):
    """ln p(target | z_k) + ln p(z_k) - ln q(z_k | x), [B, K], with noise eps [B, K, latent]."""
    q = posterior(*(t[:, None] for t in model.projection(model.encoder(x))))
    z = q.mean + q.stddev * eps
    k = eps.shape[1]
    log_pxz = gaussian_log_likelihood(
        model.decoder(z.flatten(0, 1)), target.repeat_interleave(k, 0), model.log_scale
    ).view(-1, k)
    return log_pxz + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(2) - q.log_prob(z).sum(2)


def bits_per_dim(log_px, image, std):
    """Of the bytes: their density is that of the normalised pixels over d byte / d pixel = 255 std for each of image^2 pixels a channel."""
    log_bytes = log_px - sum(image**2 * math.log(255 * s) for s in std)
    return -log_bytes / (3 * image**2) / math.log(2)


def views(model, view, original, eps_view, eps_original):
    """Cosine similarity of z, and KL(q(view) || q(original)), one number per example."""
    q, r = (posterior(*model.projection(model.encoder(x))) for x in (view, original))
    cosine = F.cosine_similarity(q.mean + q.stddev * eps_view, r.mean + r.stddev * eps_original)
    return cosine, torch.distributions.kl_divergence(q, r).sum(1)


# ---------------------------------------------------------------- the whole model


class Model(nn.Module):
    def __init__(
        self,
        method="aavae",
        encoder="resnet18",
        decoder="resnet18",
        width=64,
        latent=128,
        image=32,
        stem="cifar",
        beta=None,
        learn_log_scale=False,
        target="original",
        temperature=0.5,
    ):
        super().__init__()
        self.temperature = temperature
        self.uses_view, self.samples, default_beta = METHODS[method]
        self.beta = default_beta if beta is None else beta
        self.target = target
        self.encoder = Encoder(encoder, width, stem)
        h = self.encoder.features
        self.projection = (Projection if self.samples else DeterministicProjection)(h, latent)
        self.decoder = None if method == "simclr" else Decoder(decoder, latent, image, width, stem)
        if self.samples:
            self.log_scale = nn.Parameter(torch.zeros(1), requires_grad=learn_log_scale)

    def forward(self, original, view=None, eps=None):
        """Returns a dict; `loss` is its scalar to differentiate."""
        x = view if self.uses_view else original
        target = view if self.target == "view" and view is not None else original
        h = self.encoder(x)
        mu, logvar = self.projection(h)
        if self.decoder is None:
            loss, accuracy = nt_xent(mu, self.temperature)
            return {"h": h, "z": mu, "loss": loss, "contrastive_accuracy": accuracy}
        if not self.samples:
            x_hat = self.decoder(mu)
            return {
                "h": h,
                "mu": mu,
                "z": mu,
                "reconstruction": x_hat,
                "loss": F.mse_loss(x_hat, target),
            }
        std = std_of(logvar)
        z = mu + std * eps
        x_hat = self.decoder(z)
        log_pxz = gaussian_log_likelihood(x_hat, target, self.log_scale)
        kl = kl_to_standard_normal(mu, std)
        return {
            "h": h,
            "mu": mu,
            "logvar": logvar,
            "z": z,
            "reconstruction": x_hat,
            "log_pxz": log_pxz,
            "kl": kl,
            "loss": (self.beta * kl - log_pxz).mean(),
        }


def adam(model, lr, fused=None):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)
