/**
 * The child process that holds the native engine for one job (see engine-process.ts). It ends when the job is done,
 * when it is cancelled, or with its parent.
 */
import { randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { freemem } from 'node:os';
import {
  capacitiesForBytes, Engine, engineVersion, inspectModel, type ModelInfo, modelHash, type RoutingSpec,
} from '@moefleet/edge-agent/engine';
import {
  type DecodeOutcome, type EngineJob, type EngineSettings, type EvaluateOutcome, fileOf, type FitOutcome, type FromChild, type GenerateOutcome, type InspectOutcome, type Outcomes,
  type ToChild,
} from './engine-job';
import { isModelFileJob, type ModelFileJob, performModelFileJob } from './model-file-job';

/** Engine error codes that are the caller's input. */
const BAD_INPUT_CODES = ['MODEL_FORMAT', 'NOT_MOE', 'BAD_ARGUMENT', 'CAPACITY', 'CONTEXT_FULL'];

const MODEL_CODES = ['MODEL_FORMAT', 'NOT_MOE'];
const DEFAULT_TOP_J = 2;

class BadInputError extends Error {
  readonly code = 'BAD_ARGUMENT';
}

const cancelled = new AbortController();
let onModelFile = false;

// Ctrl-C reaches the whole process group; the parent decides what it means.
process.on('SIGINT', () => {});
process.on('disconnect', () => process.exit(1));
process.on('message', (message: ToChild) => {
  if (message.t === 'job') return void run(message.job);
  cancelled.abort();
  // A file half written is gone on with next time: nothing to wait for.
  if (onModelFile) process.exit(1);
});

async function run(job: EngineJob): Promise<void> {
  let last: FromChild;
  try {
    last = { t: 'outcome', outcome: await perform(job) };
  } catch (error) {
    const { message: said, stack, code } = error as Error & { code?: string };
    // What the engine says of a tensor does not name the file.
    const path = fileOf(job);
    const message = MODEL_CODES.includes(code ?? '') && !said.includes(path) ? `${path}: ${said}` : said;
    last = { t: 'failure', message, badInput: BAD_INPUT_CODES.includes(code ?? ''), stack: stack ?? said };
  }
  send(last, () => process.exit(0));
}

async function perform(job: EngineJob): Promise<Outcomes[keyof Outcomes]> {
  const path = fileOf(job);
  await access(path, constants.R_OK).catch((error: NodeJS.ErrnoException) => {
    throw new BadInputError(`${path}: cannot read the model file (${error.code === 'ENOENT' ? 'no such file' : error.message})`);
  });
  if (!isModelFileJob(job)) return start(job);
  onModelFile = true;
  return performModelFileJob(job, (done, total, what) => send({ t: 'progress', fraction: done / total, what, bytes: { done, total } }));
}

function start(job: Exclude<EngineJob, ModelFileJob>): Promise<Outcomes[keyof Outcomes]> {
  switch (job.t) {
    case 'inspect': return inspect(job.settings);
    case 'evaluate': return evaluate(job);
    case 'decode': return decode(job);
    case 'fitPrefetch': return fitPrefetch(job);
    case 'generate': return generate(job);
  }
}

async function inspect(settings: EngineSettings): Promise<InspectOutcome> {
  const { engine, info, spec } = await open(settings, false);
  try {
    return {
      info, modelHash: await modelHash(settings.modelPath), engine: engineVersion(), memory: engine.memory(),
      capacities: spec.capacities, contextTokens: settings.contextTokens || info.contextTrain,
    };
  } finally {
    await engine.close();
  }
}

async function evaluate(job: Extract<EngineJob, { t: 'evaluate' }>): Promise<EvaluateOutcome> {
  const { engine, info, spec } = await open({ ...job.settings, contextTokens: job.context }, true);
  try {
    const all = engine.tokenize(job.text, false, false);
    const tokens = scoredTokens(all, job);
    const runs = job.compare ? 2 : 1;
    const one = (what: string, index: number, spec: RoutingSpec) => engine.evaluate(
      { tokens, context: job.context, promptTokens: job.promptTokens, spec, stepped: job.stepped, recordRoutes: job.recordRoutes && index === runs - 1, recordScores: job.recordScores && index === runs - 1 },
      (done, total) => send({ t: 'progress', fraction: (index + done / total) / runs, what }),
      cancelled.signal,
    );
    const baseline = job.compare ? await one("scoring with the model's own routing", 0, { ...spec, routing: 'original' }) : null;
    const result = await one(`scoring with ${spec.routing}`, runs - 1, spec);
    return { info, modelHash: job.recordScores ? await modelHash(job.settings.modelPath) : '', result, baseline, spec, counters: engine.counters(), peakRssBytes: peakRssBytes() };
  } finally {
    await engine.close();
  }
}

async function decode(job: Extract<EngineJob, { t: 'decode' }>): Promise<DecodeOutcome> {
  const { engine, spec } = await open({ ...job.settings, contextTokens: job.context }, false);
  try {
    const once = scoredTokens(engine.tokenize(job.text, false, false), job);
    const tokens = new Int32Array(job.tokens * job.passes + 1);
    for (let pass = 0; pass < job.passes; pass += 1) tokens.set(once, pass * job.tokens);
    const memory = engine.memory();
    const result = await engine.evaluate({ tokens, context: job.context, spec, stepped: true },
      (done, total) => send({ t: 'progress', fraction: done / total, what: 'decoding' }), cancelled.signal);
    return { result, spec, memory, counters: engine.counters(), peakRssBytes: peakRssBytes(), cpuSeconds: cpuSeconds() };
  } finally {
    await engine.close();
  }
}

async function fitPrefetch(job: Extract<EngineJob, { t: 'fitPrefetch' }>): Promise<FitOutcome> {
  const { engine, info } = await open({ ...job.settings, contextTokens: job.context }, true);
  try {
    const tokens = scoredTokens(engine.tokenize(job.text, false, false), job);
    const windows = (tokens.length - 1) / job.context;
    const heldOutWindows = Math.max(1, Math.round(windows * job.heldOut));
    if (heldOutWindows >= windows) {
      throw new BadInputError(`${job.textPath}: ${windows} windows of ${job.context} tokens, of which ${heldOutWindows} held out, leave none to fit; give a longer text or a shorter --context`);
    }
    const capacity = job.capacity ?? Math.max(info.topK, Math.round(info.experts * 0.4));
    const result = await engine.fitPrefetch({ tokens, context: job.context, heldOutWindows, capacity },
      (done, total) => send({ t: 'progress', fraction: done / total, what: 'fitting' }), cancelled.signal);
    return { result, tokens: tokens.length - 1, heldOutTokens: heldOutWindows * job.context, capacity, topK: info.topK };
  } finally {
    await engine.close();
  }
}

/** The first N+1 tokens of the text: N are routed and scored on their next. */
function scoredTokens(all: Int32Array, job: { textPath: string; tokens: number | null; context: number }): Int32Array {
  const windows = Math.floor((all.length - 1) / job.context);
  const wanted = job.tokens ?? windows * job.context;
  if (wanted === 0 || all.length < wanted + 1) {
    throw new BadInputError(`${job.textPath}: the text has ${all.length} tokens, too short to score ${wanted || job.context} of them ` +
      `(${(wanted || job.context) + 1} needed); give a longer text, fewer --tokens or a shorter --context`);
  }
  return all.slice(0, wanted + 1);
}

async function generate(job: Extract<EngineJob, { t: 'generate' }>): Promise<GenerateOutcome> {
  const { engine, spec } = await open(job.settings, false);
  try {
    const decoder = new TextDecoder();
    let text = '';
    const add = (piece: string) => {
      if (piece === '') return;
      text += piece;
      send({ t: 'text', text: piece });
    };
    const result = await engine.generate({
      requestId: randomUUID(), prompt: engine.tokenize(job.prompt, true, false), maxTokens: job.tokens, temperature: job.temperature,
      topP: job.topP, seed: job.seed, coldCache: true, captureRouter: false,
    }, (step) => {
      add(decoder.decode(step.text, { stream: true }));
      send({ t: 'progress', fraction: Math.min(1, (step.step + 1) / job.tokens), what: 'generating' });
    }, cancelled.signal);
    add(decoder.decode());
    return { text, result, spec, memory: engine.memory(), counters: engine.counters(), peakRssBytes: peakRssBytes() };
  } finally {
    await engine.close();
  }
}

async function open(settings: EngineSettings, mayKeepAll: boolean): Promise<{ engine: Engine; info: ModelInfo; spec: RoutingSpec }> {
  const info = await inspectModel(settings.modelPath);
  const spec = routingSpec(info, settings);
  // Evaluation goes through all experts again and again; it keeps them where they take no more than half of what is free.
  const bytes = info.denseBytes + info.expertBytes.reduce((sum, each) => sum + each * info.experts, 0);
  const engine = await Engine.open({
    modelPath: settings.modelPath, contextTokens: settings.contextTokens, threads: settings.threads, lanes: settings.lanes,
    directIo: settings.directIo, readBytesPerSecond: settings.readBytesPerSecond ?? 0, verify: settings.verify ?? false, prefillBytes: settings.prefillBytes, keepAll: mayKeepAll && bytes * 2 < freemem(), spec,
  });
  return { engine, info, spec };
}

function routingSpec(info: ModelInfo, settings: EngineSettings): RoutingSpec {
  const { lambda, topJ, maxRank, rank, ...rest } = settings.routing;
  const [lambdas, topJs] = [perLayer('--lambda', lambda, info), perLayer('--top-j', topJ, info)];
  const tooMany = [topJ ?? 0].flat().find((each) => each > info.topK);
  if (tooMany !== undefined) {
    throw new BadInputError(`--top-j: ${tooMany} is more than the ${info.topK} experts a token takes; use 0 to ${info.topK}`);
  }
  if (maxRank !== null && (maxRank < info.topK || maxRank > info.experts)) {
    throw new BadInputError(`--max-rank: ${maxRank} is outside ${info.topK} (bends nothing) to ${info.experts} (any resident expert)`);
  }
  if (rank !== null && rank > info.topK) throw new BadInputError(`--rank: ${rank} is more than the ${info.topK} experts a token takes; use 1 to ${info.topK}`);
  if (rest.firstBiasedLayer > info.moeLayers.length) {
    throw new BadInputError(`--first-biased-layer: ${rest.firstBiasedLayer} is more than the ${info.moeLayers.length} layers with experts`);
  }
  return {
    ...rest, lambda: lambdas ? 0 : (lambda as number), lambdas, topJ: topJs || topJ === null ? Math.min(DEFAULT_TOP_J, info.topK) : (topJ as number), topJs,
    maxRank: maxRank ?? info.experts, rank: rank ?? info.topK, capacities: capacities(info, settings), generation: 0,
  };
}

/** The list, where one was given for the model's layers. */
function perLayer(flag: string, value: number | number[] | null, info: ModelInfo): number[] | null {
  if (!Array.isArray(value)) return null;
  if (value.length !== info.moeLayers.length) {
    throw new BadInputError(`${flag}: ${value.length} values for ${info.moeLayers.length} layers with experts; give one for all, or one for each`);
  }
  return value;
}

function capacities(info: ModelInfo, { cache }: EngineSettings): number[] {
  switch (cache.t) {
    case 'all': return info.moeLayers.map(() => info.experts);
    case 'bytes': return capacitiesForBytes(info, cache.bytes);
    case 'capacity':
      if (cache.capacity < info.topK || cache.capacity > info.experts) {
        throw new BadInputError(`--capacity: ${cache.capacity} is outside ${info.topK} to ${info.experts}: a layer needs its top-${info.topK} experts at once, and has ${info.experts}`);
      }
      return info.moeLayers.map(() => cache.capacity);
  }
}

function peakRssBytes(): number {
  return process.resourceUsage().maxRSS * 1024;
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

function send(message: FromChild, then?: () => void): void {
  if (process.connected) process.send!(message, undefined, undefined, () => then?.());
  else then?.();
}
