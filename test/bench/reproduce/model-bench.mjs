/**
 * One model, open for measuring: scores texts under a routing spec and keeps every result by its content, so that tables
 * share what they have in common and an interrupted run goes on where it was. Scores are batched: exact, and as fast as
 * prefill (native/engine/evaluation.cpp). All experts are kept in memory where they take no more than half of what is
 * free; misses are those of the logical cache, which this does not touch.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { freemem } from 'node:os';
import { basename, join } from 'node:path';
import { hashOf } from './cell-store.mjs';
import { pairedLoss } from './statistics.mjs';

const require = createRequire(import.meta.url);
const { Engine, engineVersion, inspectModel, modelHash } = require('@moefleet/edge-agent/engine');

const WINDOW_TOKENS = 256;
/** Shares of a layer's experts that are resident in the tables over capacities. */
const CAPACITY_SHARES = [0.25, 0.4, 0.5, 0.625, 0.75];

/** Two builds of the engine may differ in what they count. */
const addonHash = () => hashOf(readFileSync(join(require.resolve('@moefleet/edge-agent/engine'), '..', '..', '..', 'native', 'build', 'moefleet_engine.node')));

export class ModelBench {
  static async open({ path, texts, store, tokens, threads, onProgress }) {
    const info = await inspectModel(path);
    const bytes = info.denseBytes + info.expertBytes.reduce((sum, each) => sum + each * info.experts, 0);
    const settings = {
      modelPath: path, contextTokens: Math.min(WINDOW_TOKENS, info.contextTrain), threads, lanes: 0, directIo: true, prefillBytes: 0,
      keepAll: bytes * 2 < freemem(), spec: { routing: 'original', lambda: 0, topJ: 0, capacities: info.moeLayers.map(() => info.experts), generation: 0 },
    };
    const bench = new ModelBench();
    Object.assign(bench, {
      path, info, settings, store, tokens, onProgress, texts: new Map(texts.map(({ name, text }) => [name, text])), tokenized: new Map(), routes: new Map(),
      name: basename(path, '.gguf'), hash: await modelHash(info), engineHash: addonHash(), engineVersion: engineVersion(),
      context: settings.contextTokens, engine: await Engine.open(settings), measured: 0, found: 0,
    });
    return bench;
  }

  close() { return this.engine.close(); }

  get domains() { return [...this.texts.keys()]; }
  /** Those that every checkout has. */
  get mainDomains() { return this.domains.slice(0, 3); }
  get capacities() { return [...new Set(CAPACITY_SHARES.map((share) => Math.max(this.info.topK, Math.round(share * this.info.experts))))]; }
  /** With 40% of the experts, and with half of them. */
  get fortyPercent() { return this.capacities[1]; }
  get half() { return Math.max(this.info.topK, Math.round(this.info.experts / 2)); }
  /** Values of topJ worth showing: all of a small K, a spread of a large one. */
  get topJs() { return this.info.topK <= 4 ? [...Array(this.info.topK).keys()] : [0, 1, 2, Math.floor(this.info.topK / 2), this.info.topK - 2]; }

  /** Ids of whole windows from the start of a domain's text, at most `most` of them, and the one behind the last. */
  tokensOf(domain, most = this.tokens) {
    if (!this.tokenized.has(domain)) this.tokenized.set(domain, this.engine.tokenize(this.texts.get(domain), false, false));
    const all = this.tokenized.get(domain);
    const windows = Math.min(Math.floor(most / this.context), Math.floor((all.length - 1) / this.context));
    if (windows === 0) throw new Error(`${domain}: the text has ${all.length} tokens, less than a window of ${this.context}; give a longer one`);
    return all.slice(0, windows * this.context + 1);
  }

  /** A whole spec of the few fields that a table sets; `capacity` is that of every layer. */
  spec({ capacity = this.half, routing = 'cache_prior', lambda = 0, topJ = Math.min(2, this.info.topK), eviction = 'lru', ...rest }) {
    return { routing, lambda, topJ, capacities: this.info.moeLayers.map(() => capacity), generation: 0, eviction, ...rest };
  }

  /**
   * A text (a domain's name, or ids as `tokensOf` gives them) under a spec. Adds `scored`, the tokens per window that
   * count, to what the engine says; leaves out its per-token and per-run figures.
   */
  async score(text, fields, { promptTokens = 0, context = this.context, stepped = false } = {}) {
    const spec = this.spec(fields);
    const ids = typeof text === 'string' ? this.tokensOf(text) : text;
    return this.cell({ what: 'score', text: hashOf(ids), spec, promptTokens, context, stepped }, async () => {
      const result = await this.evaluate(ids, spec, { promptTokens, context, stepped });
      return { ...result, tokenNll: undefined, routes: undefined, evalNs: undefined, scored: context - promptTokens };
    });
  }

  /** A domain under the model's own routing, which LRU serves. */
  own(text, fields = {}, options = {}) { return this.score(text, { ...fields, routing: 'original', lambda: 0, topJ: 0 }, options); }

  evaluate(tokens, spec, { promptTokens = 0, context = this.context, stepped = false, recordRoutes = false } = {}) {
    return this.engine.evaluate({ tokens, context, promptTokens, spec, stepped, recordRoutes });
  }

  /** Which experts each token of a domain uses by the model's own routing: tokens x layers x K ids. */
  async routesOf(domain) {
    if (!this.routes.has(domain)) {
      const { routes } = await this.evaluate(this.tokensOf(domain), this.spec({ routing: 'original', topJ: 0 }), { recordRoutes: true });
      this.routes.set(domain, routes);
    }
    return this.routes.get(domain);
  }

  /** `measure()`'s plain JSON, kept under `key` and everything else that decides it. */
  async cell(key, measure) {
    const whole = { model: this.hash, engine: this.engineVersion, addon: this.engineHash, ...key };
    const kept = this.store.find(whole);
    this.onProgress(kept ? 'found' : 'measuring');
    if (kept) return kept;
    const result = JSON.parse(JSON.stringify(await measure()));
    this.store.keep(whole, result);
    return result;
  }
}

export const windowNll = (cell) => cell.windows.map(({ nll }) => nll);
export const lossOf = (cell, own) => pairedLoss(windowNll(cell), windowNll(own), cell.scored);

/** Whether the engine knows an eviction policy: a build may be older than this program. */
export async function knowsEviction(bench, eviction) {
  try {
    await bench.engine.apply({ ...bench.spec({}), eviction });
    return true;
  } catch (error) {
    if (error.code === 'BAD_ARGUMENT') return false;
    throw error;
  } finally {
    await bench.engine.apply(bench.settings.spec);
  }
}
