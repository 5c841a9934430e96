"""Defects for `tests.mutants.run` to plant in copies of kernels/, one at a time: each is one that a person could write.

The text to replace must occur exactly once in its file; the harness refuses a catalogue that no longer fits the code.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect.

    Attributes:
        file: name of the file in kernels/.
        old: text that occurs in it exactly once.
        new: what stands there instead.
        why: the defect, in one line.
    """

    file: str
    old: str
    new: str
    why: str


ARITHMETIC = (
    Mutant(
        "arithmetic.py",
        "return unit_from_byte(x)",
        "return x.to(tl.float32) * (1.0 / 255.0)",
        "bytes times 1/255, which is not k/255 correctly rounded",
    ),
    Mutant("arithmetic.py", "+ tl.minimum(k, 1)).to", "+ 1).to", "byte 0 becomes the smallest subnormal"),
    Mutant("arithmetic.py", "+ tl.minimum(k, 1)).to", ").to", "bytes over 255 cut off instead of rounded"),
    Mutant("arithmetic.py", "(gradient > 0).to", "(gradient >= 0).to", "sign(0) = 1"),
    Mutant(
        "arithmetic.py",
        'tl.where(gradient != gradient, float("nan"), signed)',
        "signed",
        "NaN in a gradient is swallowed: its sign is 0",
    ),
    Mutant(
        "arithmetic.py",
        '(tl.abs(value) < float("inf")) == 0',
        'tl.abs(value) == float("inf")',
        "the flag misses NaN",
    ),
    Mutant(
        "arithmetic.py",
        '(tl.abs(value) < float("inf")) == 0',
        "value != value",
        "the flag misses infinities",
    ),
    Mutant("arithmetic.py", "mask=any_bad > 0", "mask=any_bad >= 0", "the flag is always raised"),
    Mutant(
        "arithmetic.py", "tl.max(tl.reshape(bad", "tl.min(tl.reshape(bad", "raised only where all neighbours are bad"
    ),
    Mutant("arithmetic.py", "offsets < tl.minimum(elements", "offsets <= tl.minimum(elements", "a store past the end"),
    Mutant(
        "arithmetic.py",
        "offsets < tl.minimum(elements - start, BLOCK)",
        "offsets < tl.minimum(elements - start - 1, BLOCK)",
        "the last element is left out",
    ),
    Mutant("arithmetic.py", "tl.program_id(0).to(tl.int64) * BLOCK", "tl.program_id(0) * BLOCK", "int32 offsets"),
    Mutant("arithmetic.py", "tl.where(doubled > 20.0, 20.0, doubled)", "doubled", "tanh overflows: no clamp at 20"),
    Mutant(
        "arithmetic.py",
        "tl.where(doubled > 20.0, 20.0, doubled)",
        "tl.where(doubled < 20.0, doubled, 20.0)",
        "tanh(NaN) = 1: the clamp swallows it",
    ),
    Mutant("arithmetic.py", "r * (1.0 / 5040.0)", "r * (1.0 / 4050.0)", "digits swapped in the last coefficient"),
    Mutant("arithmetic.py", ") - whole * LN2_LOW", ")", "ln 2 in one float only"),
    Mutant(
        "arithmetic.py",
        "tl.div_rn(expm1, expm1 + 2.0)",
        "expm1 / (expm1 + 2.0)",
        "approximate division on a GPU; only the machine code shows it",
    ),
    Mutant("arithmetic.py", "error < 0, before", "error > 0, before", "the ball's radius rounded the wrong way"),
    Mutant("arithmetic.py", "total > 0, bits - 1, bits + 1", "total > 0, bits - 1, bits - 1", "wrong where negative"),
    Mutant(
        "arithmetic.py",
        "error = (mirrored - (total - part)) + (radius - part)",
        "error = radius - part",
        "half of the two-sum",
    ),
    Mutant("arithmetic.py", "bound > 1.0, 1.0, bound", "bound > 1.0, bound, bound", "box: a bound above 1"),
    Mutant("arithmetic.py", "bound < 0.0, 0.0, bound", "bound < 0.0, bound, bound", "box: a bound below 0"),
    Mutant("arithmetic.py", "    if BOX:\n", "    if BOX and False:\n", "box ignored for float pixels"),
    Mutant("arithmetic.py", "0.0 - total)", "-total)", "a lower bound of -0.0"),
)

PIXELS = (
    Mutant(
        "pixels.py",
        "Launch(_to_float_kernel, cdiv(x.numel(), block)",
        "Launch(_to_float_kernel, x.numel() // block",
        "to_float: the last block is not launched",
    ),
    Mutant(
        "pixels.py", "x = tl.load(x_ptr + start + offsets", "x = tl.load(x_ptr + offsets", "every block reads the first"
    ),
    Mutant("pixels.py", "tl.minimum(pixels * CHANNELS - begin", "tl.minimum(pixels * C - begin", "padding not stored"),
    Mutant(
        "pixels.py",
        "channel = (offsets + (begin % CHANNELS).to(tl.int32)) % CHANNELS",
        "channel = offsets % CHANNELS",
        "a block that begins inside a pixel writes the wrong channels",
    ),
    Mutant("pixels.py", "mask=live & (channel < C)", "mask=live", "padding channels hold other images' pixels"),
    Mutant(
        "pixels.py",
        "of_sign = (channel >= before) & (channel < before + C)",
        "of_sign = channel >= before",
        "padding channels hold signs, not zeros",
    ),
    Mutant(
        "pixels.py",
        "of_sign = (channel >= before) & (channel < before + C)",
        "of_sign = (channel > before) & (channel < before + C)",
        "the first channel's sign is left out",
    ),
    Mutant("pixels.py", "constexpr = C if BENIGN else 0", "constexpr = C", "signs alone begin at channel C"),
    Mutant(
        "pixels.py", "(channel - before) * gradient_channel", "channel * gradient_channel", "sign of another channel"
    ),
    Mutant("pixels.py", "image * gradient_image + first", "image * x_image + first", "gradient through x's strides"),
    Mutant("pixels.py", "pixel * gradient_pixel +", "pixel * x_pixel +", "one memory format assumed for both"),
    Mutant("pixels.py", "is_not_finite(gradient), BLOCK", "is_not_finite(out), BLOCK", "the flag misses infinities"),
    Mutant(
        "pixels.py",
        "(tl.program_id(0) // programs_per_image).to(tl.int64)",
        "tl.program_id(0) // programs_per_image",
        "int32 offsets",
    ),
    Mutant("pixels.py", "if all(t.is_contiguous", "if any(t.is_contiguous", "both taken for channels-last if one is"),
    Mutant("pixels.py", '"flag_ptr": flag if signs else None', '"flag_ptr": None', "the flag is not handed over"),
    Mutant(
        "pixels.py",
        "return x.new_empty(n, h, w, channels, dtype=dtype).permute(0, 3, 1, 2)",
        "return x.new_empty(n, channels, h, w, dtype=dtype)",
        "the result promised to the compiler is not channels-last",
    ),
    Mutant(
        "pixels.py",
        "require_channels(channels, needed,",
        "require_channels(channels, x.shape[1],",
        "room for one input where there are two",
    ),
    Mutant(
        "pixels.py", "dtype = gradient.dtype if dtype", "dtype = torch.float32 if dtype", "not the gradient's dtype"
    ),
    Mutant("pixels.py", "t.detach().contiguous(", "t.contiguous(", "generator_input: missing detach"),
    Mutant(
        "pixels.py",
        'require_like(x, gradient, "gradient")\n    require_flag(x, flag)',
        'require_like(x, gradient, "gradient")',
        "generator_input: the flag is not checked",
    ),
)

PERTURB = (
    Mutant("initial.py", "eta = tanh(generated) * epsilon", "eta = tanh(generated * epsilon)", "epsilon inside tanh"),
    Mutant("initial.py", "(pixel_value(x) + eta).to", "eta.to", "initial_point: x is not added"),
    Mutant("initial.py", "is_not_finite(generated), BLOCK", "is_not_finite(eta), BLOCK", "tanh hides infinities"),
    Mutant("initial.py", "sum(d[1:], d[0])", "d[0]", "initial_point: d_start ignored"),
    Mutant("initial.py", "(ctx.epsilon * (1 - t * t))", "(1 - t * t)", "derivative without epsilon"),
    Mutant("perturb.py", "delta = delta + alpha * sign_of", "delta = delta + sign_of", "missing alpha"),
    Mutant("perturb.py", "delta = delta + alpha * sign_of", "delta = alpha * sign_of", "eta forgotten: FGSM from x"),
    Mutant("perturb.py", "bad = bad | is_not_finite(gradient)", "bad = bad", "an infinite gradient is not flagged"),
    Mutant("perturb.py", "bad = is_not_finite(point)", "bad = is_not_finite(pixel)", "a NaN in eta is not flagged"),
    Mutant("perturb.py", "tl.where(up, 256, 0)", "tl.where(up, 0, 256)", "table rows swapped"),
    Mutant("perturb.py", "tl.where(up, 256, 0)", "tl.where(up, 255, 0)", "upper bound of the byte before"),
    Mutant("perturb.py", "up = delta >= 0", "up = point >= 0", "bound chosen by the point's sign, not delta's"),
    Mutant(
        "perturb.py",
        "reached = tl.where(up, point >= bound",
        "reached = tl.where(up, point > bound",
        "mask at the bound",
    ),
    Mutant(
        "perturb.py",
        "point >= bound, point <= bound)",
        "point >= bound, (point > bound) == 0)",
        "NaN becomes the lower bound",
    ),
    Mutant("perturb.py", "bits = tl.reshape((reached == 0)", "bits = tl.reshape((reached != 0)", "mask inverted"),
    Mutant("perturb.py", ".to(tl.int32) * live.to(tl.int32)", ".to(tl.int32)", "bits past the end are set"),
    Mutant("perturb.py", "bits << tl.arange(0, 8)", "bits << 7 - tl.arange(0, 8)", "bits in the wrong order"),
    Mutant("perturb.py", "BLOCK).to(tl.int32) + 7) // 8", "BLOCK).to(tl.int32)) // 8", "the last byte is not stored"),
    Mutant(
        "perturb.py", "inside_ptr + start // 8 + byte", "inside_ptr + start + byte", "packed bytes at unpacked places"
    ),
    Mutant("perturb.py", "start + offsets, x_adv - pixel", "start + offsets, delta", "delta not taken from x_adv"),
    Mutant("perturb.py", '"table_ptr": table if ball', '"table_ptr": None if ball', "bytes without their table"),
    Mutant("perturb.py", '{"BALL": ball, "BOX": box', '{"BALL": ball, "BOX": ball', "box wherever there is a ball"),
    Mutant(
        "perturb.py", "x.new_empty((x.numel() + 7) // 8 if", "x.new_empty(x.numel() // 8 if", "mask a byte too short"
    ),
    Mutant("perturb.py", "(quad % 2 * 4)", "((1 - quad % 2) * 4)", "halves of a byte swapped"),
    Mutant("perturb.py", "inside_ptr + start // 8 + quad // 2", "inside_ptr + quad // 2", "masks of the first block"),
    Mutant("perturb.py", "tl.where(bits == 1, gradient, 0.0)", "gradient * bits", "0 * NaN where clipped"),
    Mutant("perturb.py", "flag, keep_delta, ball\n", "flag, keep_delta, False\n", "no mask is kept for backward"),
    Mutant("perturb.py", "sum(arrived[1:], arrived[0]) if", "arrived[0] if", "d_delta ignored"),
    Mutant("perturb.py", "d_eta is not None and ctx.ball", "d_eta is not None and False", "straight through the clip"),
    Mutant(
        "perturb.py",
        "_masked_op(inside, d_eta.contiguous(memory_format=ctx.format))",
        "_masked_op(inside, d_eta.contiguous())",
        "memory format assumed in backward",
    ),
    Mutant(
        "perturb.py",
        "alike(x.detach(), eta, gradient.detach(), stacklevel=4)",
        "(x, eta, gradient)",
        "memory format assumed",
    ),
    Mutant("perturb.py", "if bounds.table.dtype != eta.dtype", "if False", "bounds of another dtype are accepted"),
)

NOISE = (
    Mutant(
        "noise.py",
        "tl.join(tl.join(a, c), tl.join(b, d))",
        "tl.join(tl.join(a, b), tl.join(c, d))",
        "words in the order a, c, b, d",
    ),
    Mutant("noise.py", "(words >> 8)", "(words >> 9)", "the upper half of the ball is never drawn"),
    Mutant("noise.py", "* 2 + 1 - (1 << 24)", "* 2 - (1 << 24)", "not symmetric, and -1 and 0 occur"),
    Mutant("noise.py", "PURPOSE + (step << 8)", "PURPOSE", "step ignored"),
    Mutant(
        "noise.py",
        "tl.load(key_ptr + 1), tl.load(key_ptr + 2)",
        "tl.load(key_ptr + 2), tl.load(key_ptr + 1)",
        "epoch as step",
    ),
    Mutant(
        "noise.py",
        "sample = tl.load(index_ptr + image)",
        "sample = image.to(tl.int64)",
        "place in the batch, not sample",
    ),
    Mutant("noise.py", "seed, counter.to", "seed.to(tl.uint32), counter.to", "half of the seed ignored"),
    Mutant("noise.py", "element if LAST else", "element if not LAST else", "memory formats mixed up"),
    Mutant(
        "noise.py", "(element % C) * pixels + element // C", "(element // C) * C + element % C", "noise in NCHW order"
    ),
    Mutant("noise.py", "* (BLOCK * 4) + tl", "* BLOCK + tl", "programs overlap"),
    Mutant("noise.py", "mask=element < elements", "mask=element <= elements", "a store past the end of the image"),
    Mutant("noise.py", "cdiv(c * h * w, 4 * block)", "c * h * w // (4 * block)", "the last program is not launched"),
    Mutant("noise.py", "out_ptr + image.to(tl.int64) * elements", "out_ptr + image * elements", "int32 offsets"),
    Mutant(
        "noise.py", "require_index(x.device, index, len(x))", "require_index(x.device, index)", "any number of samples"
    ),
)

CROP = (
    Mutant("crop.py", "W - 1 - column", "W - column", "flip off by one"),
    Mutant("crop.py", "(mirror >> 31) == 1", "(mirror >> 30) == 1", "flipped with probability 1/4"),
    Mutant("crop.py", "2 * PADDING + 1, tl.uint32", "2 * PADDING, tl.uint32", "one row less"),
    Mutant("crop.py", "column += tl.umulhi(left,", "column += tl.umulhi(top,", "the same word for both directions"),
    Mutant(
        "crop.py",
        "tl.umulhi(top, places).to(tl.int32) - PADDING",
        "tl.umulhi(top, places).to(tl.int32)",
        "padding on one side only",
    ),
    Mutant("crop.py", "2 * (H - 1) - row", "2 * H - 1 - row", "reflect repeats the border row"),
    Mutant("crop.py", "& (column >= 0) & (column < W)", "& (column < W)", "zeros missing on the left"),
    Mutant("crop.py", "& (row < H) &", "& (row <= H) &", "a row of the next image"),
    Mutant("crop.py", "known & (channel < C) &", "known &", "padding channels not zero"),
    Mutant("crop.py", "(row * W + column) * C + channel", "(row * H + column) * C + channel", "wrong for H != W"),
    Mutant("crop.py", "images_ptr + place * (H", "images_ptr + image * (H", "index ignored"),
    Mutant("crop.py", "images_ptr + place * (H", "images_ptr + place.to(tl.int32) * (H", "int32 offsets"),
    Mutant("crop.py", "epoch.to(tl.uint32), purpose", "zero, purpose", "the same crop in every epoch"),
    Mutant("crop.py", "PURPOSE + (step << 8)", "PURPOSE + step", "step and purpose share bits"),
    Mutant("crop.py", "int(Purpose.AUGMENT)", "int(Purpose.START)", "crops share counters with the noise"),
    Mutant("crop.py", "if PADDING > 0 or FLIP", "if PADDING > 0", "no flip without padding"),
    Mutant("crop.py", "cdiv(h * w * channels, block)", "cdiv(h * w * c, block)", "padded channels not launched"),
    Mutant("crop.py", "limit = min(h, w) if reflect", "limit = max(h, w) if reflect", "reflects past the image"),
    Mutant(
        "crop.py", "require_channels(channels, c,", "require_channels(channels, 1,", "too few channels are accepted"
    ),
    Mutant("crop.py", "(sample < samples)", "(sample <= samples)", "one image past the data set"),
    Mutant("crop.py", "if GATHERED else sample", "if False else sample", "a streamed image looked up by its sample"),
    Mutant("crop.py", "image.to(tl.int64) if GATHERED", "image if GATHERED", "int32 offsets in a streamed batch"),
    Mutant("crop.py", "zero, sample.to(tl.uint32)", "zero, place.to(tl.uint32)", "drawn for the place in the batch"),
    Mutant("crop.py", "SAMPLES if gathered else", "SAMPLES if not gathered else", "samples of a batch bounded by it"),
    Mutant(
        "crop.py",
        "    if gathered:\n        _require_one_for_each(images, index)\n    _,",
        "    _,",
        "a batch with more samples than images",
    ),
    Mutant("crop.py", 'require_bool(gathered, "gathered")', "", "anything taken for a gathered batch"),
)

PROJECTION = (
    Mutant("projection.py", "nearest)) <= value", "nearest)) < value", "exact bounds lose their last float"),
    Mutant("projection.py", "(-np.inf))", "(np.inf))", "epsilon rounded outwards"),
    Mutant(
        "projection.py", "return -_round_down(-value, dtype)", "return _round_down(value, dtype)", "lower bounds down"
    ),
    Mutant("projection.py", "max(exact, stored) - epsilon", "min(exact, stored) - epsilon", "low: the looser centre"),
    Mutant("projection.py", "min(exact, stored) + epsilon", "stored + epsilon", "high: around the rounded pixel only"),
    Mutant("projection.py", "stored = Fraction(float(pixel))", "stored = exact", "the pixel's own rounding forgotten"),
    Mutant("projection.py", "max(low, Fraction(0))", "low", "box: a bound below 0"),
    Mutant("projection.py", "min(high, Fraction(1))", "high", "box: a bound above 1"),
    Mutant("projection.py", "        if box:\n", "        if not box:\n", "box inverted"),
    Mutant("projection.py", "min(_round_up(low, dtype), pixel)", "_round_up(low, dtype)", "clean pixel outside: low"),
    Mutant(
        "projection.py", "max(_round_down(high, dtype), pixel)", "_round_down(high, dtype)", "clean pixel outside: high"
    ),
    Mutant("projection.py", "np.array([lower, upper])", "np.array([upper, lower])", "swapped bounds"),
    Mutant("projection.py", " + _NUMPY[dtype](0))", ")", "a bound of -0.0"),
    Mutant(
        "projection.py",
        "_table(Fraction(epsilon), box, dtype).to",
        "_table(Fraction(epsilon), True, dtype).to",
        "box always on",
    ),
    Mutant(
        "projection.py", "Fraction(epsilon), dtype)), box)", "Fraction(epsilon), dtype)), False)", "no box for floats"
    ),
    Mutant(
        "projection.py",
        "float(_round_down(Fraction(epsilon), dtype))",
        "float(_NUMPY[dtype](float(epsilon)))",
        "radius rounded to nearest: above epsilon",
    ),
    Mutant("projection.py", "0 <= epsilon <= 1", "0 < epsilon <= 1", "epsilon = 0 refused"),
    Mutant("projection.py", "not 0 <= epsilon <= 1", "epsilon < 0", "an epsilon above 1 accepted, as 8 for 8/255"),
)

REFERENCE = (
    Mutant("reference.py", "(x.to(exact) / 255).to(dtype)", "(x.to(dtype) / 255)", "bytes divided in half precision"),
    Mutant(
        "reference.py", "torch.where(gradient.isnan(), gradient, gradient.sign())", "gradient.sign()", "NaN swallowed"
    ),
    Mutant(
        "reference.py", "logical_or_(value.isfinite().logical_not_()", "logical_or_(value.isnan()", "inf not flagged"
    ),
    Mutant(
        "reference.py",
        "    if signs:\n        raise_flag(flag, gradient)\n",
        "",
        "generator_input never raises the flag",
    ),
    Mutant("reference.py", "parts.append(torch.zeros(", "parts.append(torch.ones(", "padding channels not zero"),
    Mutant(
        "reference.py",
        ".contiguous(memory_format=torch.channels_last)\n\n\ndef tanh",
        "\n\n\ndef tanh",
        "not channels-last",
    ),
    Mutant("reference.py", "torch.where(doubled > 20, 20.0, doubled)", "doubled", "tanh overflows: no clamp at 20"),
    Mutant("reference.py", "(1 / 120, 1 / 24, 1 / 6", "(1 / 120, 1 / 24, 1 / 3", "wrong coefficient in tanh"),
    Mutant("reference.py", "    raise_flag(flag, generated)\n", "", "initial_point never raises the flag"),
    Mutant("reference.py", "up.int() * 256", "(~up).int() * 256", "rows of the table swapped"),
    Mutant(
        "reference.py",
        "(~up & (point <= bound))",
        "(~up & (point < bound))",
        "a point on its lower bound counts as inside",
    ),
    Mutant("reference.py", "left = x_adv - pixel if", "left = delta if", "delta not taken from x_adv"),
    Mutant("reference.py", "pack(~reached)", "pack(reached)", "mask inverted"),
    Mutant("reference.py", "    raise_flag(flag, point)\n", "", "a NaN in eta is not flagged"),
    Mutant(
        "reference.py",
        "torch.where(error < 0, torch.nextafter",
        "torch.where(error <= 0, torch.nextafter",
        "a float lost",
    ),
    Mutant("reference.py", "torch.where(bound < 0, 0.0, bound)", "bound", "box: a bound below 0"),
    Mutant("reference.py", "(0, -len(flat) % 8)", "(0, 8 - len(flat) % 8)", "a byte too many where 8 divides the size"),
    Mutant("reference.py", "(x.permute(0, 2, 3, 1) if last else x)", "x", "packed in NCHW order whatever the memory"),
    Mutant("reference.py", "index[:, None], epoch, purpose", "index[:, None], 0, purpose", "epoch ignored"),
    Mutant("reference.py", ".reshape(n, h, w, c).permute(0, 3, 1, 2)", ".reshape(n, c, h, w)", "noise in NCHW order"),
    Mutant("reference.py", "(word * (2 * padding + 1)) >> 32", "(word * (2 * padding)) >> 32", "last crop never drawn"),
    Mutant("reference.py", "w - 1 - columns", "w - columns", "flip off by one"),
    Mutant("reference.py", "2 * (size - 1) - place", "2 * size - 1 - place", "reflect repeats the border"),
    Mutant(
        "reference.py",
        "(0, 0, padding, padding, padding, padding)",
        "(0, 0, 0, 2 * padding, padding, padding)",
        "one side only",
    ),
    Mutant("reference.py", "epoch=epoch, step=step)", "epoch=epoch)", "augment ignores the step"),
    Mutant("reference.py", "index.min() < 0 or ", "", "a negative index counts from the end"),
    Mutant("reference.py", "images if gathered else images[index]", "images[index]", "a streamed batch gathered again"),
    Mutant("reference.py", "SAMPLES if gathered else", "1 << 40 if gathered else", "samples beyond a counter's word"),
)

PHILOX = (
    Mutant("philox.py", "ROUNDS = 10", "ROUNDS = 7", "fewer rounds"),
    Mutant("philox.py", "0xBB67AE85", "0xBB67AE58", "digits swapped in a Weyl constant"),
    Mutant("philox.py", "(seed >> 32) & MASK32", "seed & MASK32", "high half of the seed ignored"),
    Mutant("philox.py", "(p0 >> 32) & MASK32", "p0 >> 32", "sign bits in a word"),
    Mutant("philox.py", "int(purpose) + (step << 8)", "int(purpose)", "step ignored"),
    Mutant("philox.py", "philox((0, index, epoch,", "philox((0, index, 0,", "epoch ignored"),
    Mutant(
        "philox.py",
        "[seed - (seed >> 63 << 64), epoch, step]",
        "[seed - (seed >> 63 << 64), step, epoch]",
        "epoch and step swapped in the key",
    ),
    Mutant(
        "philox.py", "[seed - (seed >> 63 << 64), epoch", "[seed & (1 << 63) - 1, epoch", "top bit of the seed lost"
    ),
    Mutant("philox.py", '("step", step, 24)', '("step", step, 32)', "a step that overflows its word is accepted"),
    Mutant(
        "philox.py",
        "seed=seed, purpose=purpose, epoch=epoch)",
        "seed=seed, purpose=purpose)",
        "one order for all epochs",
    ),
    Mutant("philox.py", "| int(low)) >> 1", "| int(low))", "derived seeds of 64 bits"),
)

LAUNCH = (
    Mutant("launch.py", '"enable_fp_fusion": False', '"enable_fp_fusion": True', "fused multiply-adds, rounded once"),
)

LAYOUT = (
    Mutant(
        "layout.py",
        "return torch.channels_last if x",
        "return torch.contiguous_format if x",
        "channels-last images are copied and lose their format",
    ),
    Mutant(
        "layout.py",
        "return tuple(tensor.contiguous(memory_format=wanted) for tensor in (x, *others))",
        "return (x, *others)",
        "memory formats differ under one flat index",
    ),
    Mutant(
        "layout.py",
        "if other is not None and not other",
        "if other is not None and False and not other",
        "strides unchecked",
    ),
)

CHECKS = (
    Mutant("checks.py", "if other.shape != x.shape", "if other.numel() != x.numel()", "same size taken for same shape"),
    Mutant(
        "checks.py", "if other.dtype not in dtypes", "if other.dtype not in FLOATS", "eta in half precision accepted"
    ),
    Mutant("checks.py", "or flag.numel() != 1", "", "a flag of any size"),
    Mutant("checks.py", "or key.shape != (3,)", "", "a key of any shape"),
    Mutant("checks.py", "index.dtype != torch.int64", "index.dtype.is_floating_point", "an int32 index read as int64"),
    Mutant("checks.py", "if not 0 <= number <= 1", "if not 0 <= number", "alpha = 8 accepted for 8/255"),
    Mutant("checks.py", "if x.dim() != 4", "if x.dim() < 3", "images without a batch accepted"),
    Mutant("checks.py", "if channels < needed", "if channels <= needed", "exactly enough channels are refused"),
)

# What a GPU runs around the kernels: on a CPU only the tests call it.
OPERATORS = (
    Mutant("perturb.py", "delta if keep_delta else None,", "None,", "delta asked for and not written"),
    Mutant("perturb.py", "inside if keep_inside else None,", "None,", "clip mask asked for and not written"),
    Mutant(
        "perturb.py", "table=table,\n        radius=radius,", "table=None,\n        radius=radius,", "no table on a GPU"
    ),
    Mutant(
        "perturb.py", "ball=ball,\n        table=table", "ball=True,\n        table=table", "a ball nobody asked for"
    ),
    Mutant("pixels.py", "launch_to_float(x, out).run()", "launch_to_float(x, out)", "the launch is not run"),
    Mutant("noise.py", "    require_alike(x)\n", "", "noise in an order of its own"),
    Mutant(
        "crop.py",
        "    if not images.is_contiguous():\n        raise",
        "    if False:\n        raise",
        "strides unchecked",
    ),
    Mutant("crop.py", "flip=flip, gathered=gathered).run()", "flip=flip).run()", "a streamed batch indexed on a GPU"),
    Mutant(
        "crop.py",
        "    if gathered:\n        _require_one_for_each(images, index)\n    out",
        "    out",
        "the operator reads past a batch",
    ),
    Mutant("initial.py", "epsilon=epsilon).run()", "epsilon=1.0).run()", "epsilon lost on the way"),
    Mutant("perturb.py", "if len(inside) != (", "if len(inside) < 0 * (", "a clip mask of any length"),
)

CATALOGUE = (
    ARITHMETIC
    + PIXELS
    + PERTURB
    + NOISE
    + CROP
    + PROJECTION
    + REFERENCE
    + PHILOX
    + LAUNCH
    + LAYOUT
    + CHECKS
    + OPERATORS
)
