#include "stock-model.h"

#include "llama-runtime.h"

#include <cstdio>
#include <sys/resource.h>

namespace {

int fail(const std::string & what) {
    fprintf(stderr, "%s\n", what.c_str());
    return 1;
}

void print_list(const char * name, const std::vector<stock_token> & tokens, double (*value)(const stock_token &), const char * format) {
    printf("\"%s\":[", name);
    for (size_t i = 0; i < tokens.size(); i++) {
        if (i) putchar(',');
        printf(format, value(tokens[i]));
    }
    printf("],");
}

}  // namespace

int stock_decode(const stock_options & o) {
    stock_model stock;
    const std::string wrong = stock_open(o, stock);
    if (!wrong.empty()) return fail(wrong);
    std::vector<stock_token> decoded(size_t(o.passes) * size_t(o.tokens));
    for (size_t i = 0; i < decoded.size(); i++) {
        const size_t at = i % size_t(o.tokens);
        if (at % size_t(o.context) == 0) stock_restart(stock);
        if (!stock_decode_token(stock, at, decoded[i])) return fail("llama.cpp could not decode: " + llama_runtime_errors());
    }
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{");
    print_list("startNs", decoded, [](const stock_token & t) { return double(t.start_ns); }, "%.0f");
    print_list("endNs", decoded, [](const stock_token & t) { return double(t.end_ns); }, "%.0f");
    print_list("nll", decoded, [](const stock_token & t) { return double(t.nll); }, "%.6g");
    const auto seconds = [](const timeval & t) { return double(t.tv_sec) + double(t.tv_usec) / 1e6; };
    printf("\"peakRssBytes\":%lld,\"cpuSeconds\":%.3f}\n", (long long) usage.ru_maxrss * 1024, seconds(usage.ru_utime) + seconds(usage.ru_stime));
    return 0;
}
