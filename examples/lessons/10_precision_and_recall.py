"""
Lesson 10: precision, recall, prevalence
========================================

The talk's tables, recomputed from the counts behind them: what each number means, and which of them would change in
another sky.

Run it: ``python -m examples.lessons.10_precision_and_recall``
"""

# %%
import sys

sys.path += [".", "../.."]  # `examples` is found from the root of the repository and from this folder

import matplotlib.pyplot as plt
import numpy as np

from examples.lessons.common import BLUE, GREEN, ORANGE, finish
from minidl import metrics

# %% [markdown]
# **The counts.** The talk tests its network on 1157 barred and 2741 unbarred galaxies (Abraham et al. 2018) and prints
# precision 86.41 and recall 95.07 for barred, 97.83 and 93.69 for unbarred. Only one set of whole numbers gives all
# four. Let us find it: recall 95.07 % of 1157 leaves TP = 1100; the rest follows.

# %%
barred, unbarred = 1157, 2741
fits = [
    (tp, fp)
    for tp in range(barred + 1)
    for fp in range(unbarred + 1)
    if abs(100 * tp / barred - 95.07) < 0.005
    and abs(100 * (unbarred - fp) / unbarred - 93.69) < 0.005
    and abs(100 * tp / (tp + fp) - 86.41) < 0.005
    and abs(100 * (unbarred - fp) / (unbarred - fp + barred - tp) - 97.83) < 0.005
]
print(f"counts (TP, FP) that give all four printed figures: {fits}")
tp, fp = fits[0]
fn, tn = barred - tp, unbarred - fp
matrix = np.array([[tn, fp], [fn, tp]])
print(f"TP {tp}  FN {fn}  FP {fp}  TN {tn}")

# %% [markdown]
# **The ratios.** Recall asks the sky: of the barred galaxies, how many did we find? Precision asks our list: of what we
# called barred, how much is? One false alarm costs precision and leaves recall alone.

# %%
scores = metrics.precision_recall_f1(matrix)
for name, k in (("barred", 1), ("unbarred", 0)):
    print(f"{name:9} precision {100 * scores.precision[k]:.2f} %  recall {100 * scores.recall[k]:.2f} %")
print(f"accuracy {100 * (tp + tn) / matrix.sum():.2f} %")
for average in ("micro", "macro"):
    p, r, _ = metrics.precision_recall_f1(matrix, average)
    print(f"{average} average: precision {100 * p:.2f} %  recall {100 * r:.2f} %")

# %% [markdown]
# The talk prints an average of 94.1 / 94.1. That is the micro average, which for one label a galaxy is the accuracy
# under another name; the mean of the two classes' precisions (macro) is 92.12 %.
#
# **Prevalence.** Recall and the false positive rate belong to the network. Precision does not: it depends on the share
# π of bars among the galaxies it is asked about,
#
#     P(π) = π·R / (π·R + (1 − π)·FPR)
#
# In the talk's test sample 29.7 % are barred. Give the same network a sample where 1 % are, and most of its alarms are
# false: the few bars are outnumbered by mistakes on the many others.

# %%
recall, fpr = tp / barred, fp / unbarred


def precision_at(share):
    return share * recall / (share * recall + (1 - share) * fpr)


print(f"recall {recall:.4f}, false positive rate {fpr:.4f}")
for share in (barred / (barred + unbarred), 0.5, 0.1, 0.01):
    print(f"share of bars {share:5.1%}: precision {precision_at(share):.1%}")

# %% [markdown]
# **A precision without a recall.** The talk's second table calls 1 − false/picked an accuracy, for three tools that
# pick particles in micrographs (β-galactosidase, judged on class averages). It is a precision. How many particles each
# tool missed is not in it: a tool that picks only the ten surest would score best.

# %%
tools = {"CASSPER": (36934, 2404), "Gautomatch": (73662, 18541), "crYOLO": (44591, 1787)}
for name, (picked, false) in tools.items():
    print(
        f"{name:10} picked {picked:6,}, false {false:6,}: precision {1 - false / picked:.2%}, true {picked - false:6,}"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
shares = np.logspace(-3, -0.01, 200)
left.semilogx(100 * shares, 100 * precision_at(shares), color=BLUE, lw=2, label="precision of 'barred'")
left.axhline(100 * recall, color=ORANGE, ls="--", label="recall, the same everywhere")
here = barred / (barred + unbarred)
left.plot(100 * here, 100 * precision_at(here), "k*", ms=13, label="the talk's test sample")
left.set(xlabel="share of barred galaxies (%)", ylabel="%", xlim=(0.1, 100), ylim=(0, 102))
left.set_title("One network, other skies")
left.legend(loc="center right")
for k, (picked, false) in enumerate(tools.values()):
    right.bar(k, (picked - false) / 1000, color=GREEN)
    right.bar(k, false / 1000, bottom=(picked - false) / 1000, color=ORANGE, hatch="//")
    right.text(k, picked / 1000 + 1, f"precision {100 * (1 - false / picked):.1f} %", ha="center")
right.bar(0, 0, color=GREEN, label="true picks")
right.bar(0, 0, color=ORANGE, hatch="//", label="false picks")
right.set(xticks=range(3), xticklabels=list(tools), ylabel="particles picked (thousands)", ylim=(0, 85))
right.set(title="The talk's pickers: missed particles are not counted", xlabel="tool", xlim=(-0.6, 2.6))
right.legend(loc="upper left")
finish(figure, "10_precision_and_recall")

# %% [markdown]
# **Exercises**
#
# 1. At which share of bars is half of the network's list false? *Right if* P(π) there is 0.5: π is about 6.2 %.
# 2. Say "barred" of every galaxy. Precision, recall, accuracy on the talk's sample? *Right if* the recall is 1 and the
#    precision 29.7 %; an accuracy alone would have shown nothing suspicious at π = 0.9.
# 3. Test samples of 50 % bars are common. What would the talk's precision have been? *Right if* you get 93.8 %, seven
#    points more without any better network.
