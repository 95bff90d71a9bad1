/**
 * A recording as the simulator reads it: misses of real windows of text and what they cost, at the settings that were run and,
 * between them, on straight lines over λ and the capacity. The truth is taken as it was measured, with its noise: a search
 * over it finds optima that are a little too good, which is to the learner's disadvantage.
 */
import { readFileSync } from 'node:fs';
import { mean, standardError } from '../reproduce/statistics.mjs';

const mixOf = (a, b, at) => a + at * (b - a);

export class Recording {
  constructor(data) {
    Object.assign(this, { experts: data.experts, topK: data.topK, layers: data.layers, context: data.context, modelHash: data.modelHash });
    this.points = data.points;
    this.domains = [...new Set(data.points.map(({ domain }) => domain))];
    this.topJs = [...new Set(data.points.filter(({ lambda }) => lambda > 0).map(({ topJ }) => topJ))].sort((a, b) => a - b);
    this.lambdas = [...new Set(data.points.map(({ lambda }) => lambda))].sort((a, b) => a - b);
    this.capacities = [...new Set(data.points.map(({ capacity }) => capacity))].sort((a, b) => a - b);
    this.byKey = new Map(data.points.map((point) => [key(point.set, point.domain, point.capacity, point.lambda, point.topJ), point]));
    this.kept = new Map();
  }

  static read(path) {
    return new Recording(JSON.parse(readFileSync(path, 'utf8')));
  }

  at(set, domain, capacity, lambda, topJ) {
    const point = this.byKey.get(key(set, domain, capacity, lambda, lambda === 0 ? 0 : topJ));
    if (!point) throw new Error(`not recorded: ${set} of ${domain} at capacity ${capacity}, λ ${lambda}, topJ ${topJ}`);
    return point;
  }

  /** Nats per token against λ 0 on the same windows, and the standard error of it. */
  loss(point) {
    const plain = this.at(point.set, point.domain, point.capacity, 0, 0);
    const differences = point.nll.map((nll, i) => (nll - plain.nll[i]) / this.context);
    return { loss: mean(differences), stderr: standardError(differences) };
  }

  /** Of a workload at a setting: `loss` in nats, per layer misses per slot, and per window of text misses per slot against the mean. */
  truth(domain, capacity, lambda, topJ) {
    const name = key('workload', domain, capacity, lambda, topJ);
    const kept = this.kept.get(name);
    if (kept) return kept;
    const made = this.interpolate(domain, capacity, lambda, topJ);
    this.kept.set(name, made);
    return made;
  }

  interpolate(domain, capacity, lambda, topJ) {
    // All experts resident: nothing is missed and nothing bent.
    if (capacity >= this.experts) return { loss: 0, layerMissRates: new Array(this.layers).fill(0), windows: this.at('workload', domain, this.capacities[0], 0, 0).misses.map(() => 0) };
    const [low, high] = around(this.capacities, capacity);
    const a = this.alongLambda(domain, low, lambda, topJ);
    if (low === high) return a;
    const b = high === undefined ? this.interpolate(domain, this.experts) : this.alongLambda(domain, high, lambda, topJ);
    return between(a, b, (capacity - low) / ((high ?? this.experts) - low));
  }

  alongLambda(domain, capacity, lambda, topJ) {
    const [low, high] = around(this.lambdas, lambda);
    const read = (one) => {
      const point = this.at('workload', domain, capacity, one, topJ);
      const slots = this.context * this.layers * this.topK;
      return { loss: this.loss(point).loss, layerMissRates: point.layerMissRates, windows: point.misses.map((misses) => misses / slots) };
    };
    return low === high ? read(low) : between(read(low), read(high), (lambda - low) / (high - low));
  }
}

function between(a, b, at) {
  return {
    loss: mixOf(a.loss, b.loss, at), layerMissRates: a.layerMissRates.map((rate, layer) => mixOf(rate, b.layerMissRates[layer], at)),
    windows: a.windows.map((rate, i) => mixOf(rate, b.windows[i], at)),
  };
}

function around(sorted, value) {
  const low = sorted.filter((one) => one <= value + 1e-9).at(-1) ?? sorted[0];
  return [low, Math.abs(low - value) < 1e-9 || value < low ? low : sorted.find((one) => one > low)];
}

function key(set, domain, capacity, lambda, topJ) {
  return `${set}|${domain}|${capacity}|${Math.round(lambda * 1000)}|${topJ}`;
}
