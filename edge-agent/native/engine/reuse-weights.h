// The pass over the weights of a reuse predictor, by far the most of its work.
#pragma once

// weights[rows][n] takes the step that is due, due[row] * step[e], and is then read: inputs[row] times it is added to worth[e], row by
// row. Returns 1 + the square of the inputs' length.
float reuse_weights_read(int rows, int n, const float * inputs, const float * due, const float * step, float * weights, float * worth);
