# %% [markdown]
# Cross-modal attention: words that look at pictures

**The question.** How does one modality listen to another, what goes wrong when it is written carelessly, and does the
trained model really look at the object it is asked about?

*Hardware:* two CPU cores suffice. *Measured* (profile `quick`, two CPU cores): @@03_cross_modal_attention@@ with the
published model.
# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np
import torch

from omni_lab.attention import MultiHeadAttention
from omni_lab.config import get_profile
from omni_lab.data import collate
from omni_lab.evaluation import bootstrap_interval
from omni_lab.fusion import CrossModalAttention
from omni_lab.routing import Path
from omni_lab.learning import get_recipe, load_or_train
from omni_lab.modalities import Modality, Tokens
from omni_lab.results import start_run
from omni_lab.viz import accuracy_bars, attention_over_picture, use_style, weight_matrix
# %% parameters
profile = "quick"  # smoke, quick or full
seed = 0  # of the model that is loaded or trained
output_dir = ""  # where results go; empty: reports/interactive/
max_pictures = 400  # validation pictures over which attention is measured
retrain = False  # ignore existing checkpoints and train afresh
# %%
settings = get_profile(profile)
asked = {"max_pictures": max_pictures}
run = start_run("03_cross_modal_attention", profile=profile, seed=seed, output_dir=output_dir, **asked)
use_style()
# %% [markdown]
## The idea, then the formula

Attention is a soft look-up. A *query* is compared with *keys*; the better they match, the more of the matching *value*
is returned. In self-attention all three come from the same sequence. In **cross-modal** attention the query comes from
one modality, keys and values from another: the word "triangle" asks, the cells of the picture answer.

$$\text{Attention}(Q, K, V) = \text{softmax}\!\left(\frac{QK^\top}{\sqrt{d_h}}\right)V
\qquad Q = X_m W_Q,\quad K = X_n W_K,\quad V = X_n W_V$$

With $H$ heads, the width $D$ is cut into $H$ parts of $d_h = D/H$; each part attends on its own, and $W_O$ mixes the
results (Vaswani et al. 2017, section 3.2.2). If the components of queries and keys are independent with variance 1,
division by $\sqrt{d_h}$ keeps the scores at variance 1 too, however wide a head is.
# %%
print(inspect.getsource(MultiHeadAttention.forward))
# %% [markdown]
## Checked against the reference

The same weights in `torch.nn.MultiheadAttention` must give the same result. So must our two paths: the fused kernel that
training uses, and the explicit one that returns the weights. Otherwise the pictures below would show another model.
# %%
torch.manual_seed(seed)
dim, heads, words, cells = 64, 4, 6, 16
ours = MultiHeadAttention(dim=dim, heads=heads)
reference = torch.nn.MultiheadAttention(dim, heads, batch_first=True)
with torch.no_grad():
    reference.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
    reference.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
    reference.out_proj.load_state_dict(ours.out.state_dict())

text, picture = torch.randn(3, words, dim), torch.randn(3, cells, dim)
mask = torch.arange(cells) < torch.tensor([16, 9, 1])[:, None]
with torch.no_grad():
    fused = ours(text, Tokens(picture, mask)).values
    explicit = ours(text, Tokens(picture, mask), need_weights=True)
    expected, expected_weights = reference(text, picture, picture, ~mask, average_attn_weights=False)
to_reference = (fused - expected).abs().max().item()
between_paths = (fused - explicit.values).abs().max().item()
run.record("attention/difference_to_torch", to_reference, higher_is_better=False)
run.record("attention/difference_fused_explicit", between_paths, higher_is_better=False)
print(f"largest difference to torch {to_reference:.1e}, between our two paths {between_paths:.1e}")
assert to_reference < 1e-5 and between_paths < 1e-5
assert torch.allclose(explicit.weights, expected_weights, atol=1e-6)
# %% [markdown]
## A modality that is not there

If a sample has no picture, all its keys are masked. A softmax over nothing is $0/0$: NaN, which spreads through the whole
batch at the next step. Ours returns exactly zero, without even the output bias, so an absent modality adds nothing.
# %%
nothing = torch.zeros(3, cells, dtype=torch.bool)
with torch.no_grad():
    absent = ours(text, Tokens(picture, nothing)).values
    naive = torch.full((words, cells), float("-inf")).softmax(dim=-1)
print("ours:", absent.abs().max().item(), "  naive softmax:", naive[0, 0].item())
assert absent.abs().max() == 0
# %% [markdown]
## Two common mistakes

It is easy to write a version like the one below. It has two faults:

1. It never stores `embed_dim`, and so cannot even be called.
2. Once that is mended, it splits heads with `view(B, H, N, d)` where it needs `view(B, N, H, d).transpose(1, 2)`. Shapes
   agree, nothing crashes, the loss even falls. But the numbers are cut in the wrong order: a "head" now holds
   *a few whole tokens* instead of *a part of every token*.

A test that catches it: attention has no notion of order. Permuting the keys together with their values must change nothing.
# %%
class CarelessCrossAttention(torch.nn.Module):
    """With the first fault mended, and the second left in."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads  # what is easily forgotten
        self.q, self.k, self.v = (torch.nn.Linear(embed_dim, embed_dim) for _ in range(3))

    def forward(self, query, context):
        batch, width = len(query), self.embed_dim // self.num_heads
        q, k, v = self.q(query), self.k(context), self.v(context)
        q, k, v = (x.reshape(batch, self.num_heads, -1, width) for x in (q, k, v))  # the wrong order
        weights = (q @ k.transpose(-2, -1) / width**0.5).softmax(dim=-1)
        return (weights @ v).reshape(batch, -1, self.embed_dim), weights


# %%
careless = CarelessCrossAttention(dim, heads)
order = torch.randperm(cells)
full = torch.ones(3, cells, dtype=torch.bool)
with torch.no_grad():
    moved = (careless(text, picture)[0] - careless(text, picture[:, order])[0]).abs().max().item()
    ours_moved = (ours(text, Tokens(picture, full)).values - ours(text, Tokens(picture[:, order], full)).values)
run.record("attention/careless_order_dependence", moved, higher_is_better=False, control=True)
run.record("attention/order_dependence", ours_moved.abs().max().item(), higher_is_better=False)
print(f"cells permuted: careless changes by {moved:.2f}, ours by {ours_moved.abs().max():.1e}")
assert moved > 1e-2 and ours_moved.abs().max() < 1e-5
# %% [markdown]
What does a careless "head" attend to? Let one cell of the picture carry a strong signal that every query is tuned to. In
the correct version, every word finds it, in every head. In the careless one, head 0 consists of pieces of cells 0 to 3
alone: what it calls "cell 5" is a quarter of cell 1, and the marked cell is not even among its keys.
# %%
with torch.no_grad():
    for query, key in ((ours.query, ours.key), (careless.q, careless.k)):
        query.weight.copy_(torch.eye(dim))
        key.weight.copy_(torch.eye(dim))
    signal = torch.randn(dim).sign()
    tuned, marked = 0.2 * torch.randn(1, words, dim) + signal, 0.2 * torch.randn(1, cells, dim)
    marked[0, 5] += signal
    right = ours(tuned, Tokens(marked, full[:1]), need_weights=True).weights[0, 0]
    wrong = careless(tuned, marked)[1][0, 0]
panels = np.stack([right.numpy(), wrong.numpy()])
names = {"queries": [f"row {i}" for i in range(words)], "keys": [str(i) for i in range(cells)]}
titles = ["ours, head 0: rows are words, columns cells", "careless: pieces of 2 words and 4 cells"]
run.save_figure(weight_matrix(panels, **names, titles=titles, xlabel="key", ylabel="query"), "careless");
# %% [markdown]
## A path of its own

In omni_lab each directed pair of modalities is a *path* with norms, projections and output of its own (the pairwise form
of MulT, Tsai et al. 2019). That costs parameters. It will pay once paths are opened and closed per sample: a closed path
that owns its weights saves all its work.
# %%
print(inspect.getsource(CrossModalAttention))
# %% [markdown]
## The trained model's attention

Now the real thing, on validation pictures. The weights come from the forward that gave the answer.
# %%
trained = load_or_train(get_recipe("easy_vqa", settings, seed=seed), retrain=retrain)
model, data = trained.model, trained.data
print("weights:", trained.origin)
validation = data.dataset("validation")
rows = np.unique(validation.picture_rows)[:max_pictures]
question = "what shape is in the image?"
path = Path(Modality.TEXT, Modality.IMAGE)
batch = collate([validation.ask(question, int(row)) for row in rows])
with torch.inference_mode():
    output = model(batch, need_weights=True)
    plain = model(batch).heads["answer"]
weights = output.fusion.attention[-1][path]  # [B, H, Nq, Nk]
assert (plain - output.heads["answer"]).abs().max() < 1e-4, "both paths must answer alike"
assert torch.allclose(weights.sum(dim=-1), torch.ones(weights.shape[:-1]), atol=1e-5)
print("weights", list(weights.shape), "= [pictures, heads, words, cells]")
# %%
grid = model.encoders["image"].grid
pieces = [piece.replace("Ġ", "") for piece in data.store.tokenizer.encode(question).tokens]
figure = attention_over_picture(data.store.picture(int(rows[3])), weights[3].mean(dim=0).numpy(), grid, pieces)
run.save_figure(figure, "attention");
# %% [markdown]
Heads need not agree. Averaged over words, this is what each head looks at:
# %%
labels = [f"head {h}" for h in range(weights.shape[1])]
figure = attention_over_picture(data.store.picture(int(rows[3])), weights[3].mean(dim=1).numpy(), grid, labels)
run.save_figure(figure, "heads");
# %% [markdown]
## Does it look at the object?

A picture map persuades too easily, so we measure. The backgrounds of easy-VQA are plain: a pixel belongs to the object
where it differs clearly from the median colour. With $a_c$ the attention on cell $c$ and $s_c$ the share of the cell's
pixels that belong to the object, the attention on the object is

$$\sum_c a_c\, s_c$$

The control is uniform attention: it gives the object exactly its share of the area.
# %%
def object_share(picture, grid):
    """Share of object pixels in each cell, [h * w]."""
    pixels = picture.astype(int)
    background = np.median(pixels, axis=(1, 2), keepdims=True)
    inside = np.abs(pixels - background).max(axis=0) > 40
    height, width = (size // cells for size, cells in zip(inside.shape, grid, strict=True))
    return inside.reshape(grid[0], height, grid[1], width).mean(axis=(1, 3)).ravel()


share = np.stack([object_share(data.store.picture(int(row)), grid) for row in rows])  # [B, h * w]
per_head = (weights.mean(dim=2).numpy() * share[:, None]).sum(axis=-1)  # [B, H]
average, uniform = per_head.mean(axis=1), share.mean(axis=1)
keep = {"resamples": settings.bootstrap, "seed": seed}
interval = bootstrap_interval(average, rows, **keep)
run.record("attention/on_object", average.mean(), interval=interval)
run.record(
    "attention/uniform_on_object", uniform.mean(), interval=bootstrap_interval(uniform, rows, **keep), control=True
)
gain = bootstrap_interval(average - uniform, rows, **keep)
run.record("attention/on_object_gain", (average - uniform).mean(), interval=gain)
# %%
bars = [("all heads", average.mean(), interval, False)]
for head, values in enumerate(per_head.T):
    bars.append((f"head {head}", values.mean(), bootstrap_interval(values, rows, **keep), False))
bars.append(("uniform attention", uniform.mean(), bootstrap_interval(uniform, rows, **keep), True))
figure = accuracy_bars(bars, title="attention that falls on the object", xlabel="share of attention")
run.save_figure(figure, "on_object");
# %% [markdown]
How to read it: if the interval of the *gain* over uniform attention lies clear of zero, the object gets more attention
than its area. If it does not, the map shows no such thing, however convincing single pictures look. Even a clear gain does
not say that the answer *depends* on where attention falls: Swin has already mixed neighbouring cells, so a cell beside the
object may carry the object's features. And the head reads the maximum over the picture's tokens directly, past this attention.

## Summary

- Cross-modal attention: queries from one modality, keys and values from another; masked-out modalities add exactly zero.
- Checked: equal to torch's, fused equal to explicit, indifferent to the order of the keys. The careless version is not.
- The share of attention on the object is measured, beside uniform attention.

## Exercises

1. Leave out the division by $\sqrt{d_h}$ at width 256. How does the largest weight of a random query change?
2. In which head does the attention move most between "what shape" and "what color" questions?
3. Remove the picture. Which answers survive?
4. How far from uniform is the attention of the untrained model, `get_recipe("easy_vqa", settings).new_model(data)`?

Solutions are in `90_solutions`.
