/* Products of generated code: sums whose order is in the source, and not in a compiler's hands.
 *
 * A step multiplies vectors with matrices, so it costs what reading the weights costs. They lie in
 * tiles of 128 columns, row after row (export/c/matrices.py), and each column is summed in the order
 * of its rows. A vector of the CPU holds neighbouring columns, which never meet: wider vectors take
 * more columns at a time, and change no bit. Each kernel is a file, with a plain loop that says what
 * it computes; a bundle gets them in one header, without those loops.
 */
#ifndef STATEGATE_KERNELS_H
#define STATEGATE_KERNELS_H

#include "stategate_math.h"

#include "kernels/vectors.h"
#include "kernels/product.h"
#include "kernels/rows.h"
#include "kernels/narrow_product.h"
#include "kernels/integer_product.h"
#include "kernels/mix.h"
#include "kernels/dot.h"
#include "kernels/recurrent.h"

#endif
