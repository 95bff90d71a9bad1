// Which of ggml's types this program can write, and which of them fit a row.
#pragma once

#include "ggml.h"

#include <string>
#include <vector>

// Into which experts can be quantised, 2 to 8 bits, fewest bits first. Those that need an importance matrix are not here.
const std::vector<ggml_type> & quantised_types();

// By ggml's name, such as "q4_0", in any case; GGML_TYPE_COUNT where it is none of quantised_types().
ggml_type quantised_type_named(const std::string & name);

// "q4_0, q5_0, ...": those whose blocks fit rows of `n` values.
std::string quantised_types_for_rows(int64_t n);

// Whether ggml_quantize_chunk makes the type without an importance matrix; plain numbers included.
bool type_can_be_written(ggml_type type);

double type_bits(ggml_type type);  // per value
