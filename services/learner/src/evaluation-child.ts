/** The process that holds the native engine while a surface is measured (see evaluation-process.ts). */
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { access, readFile } from 'node:fs/promises';
import { freemem } from 'node:os';
import { basename, extname } from 'node:path';
import { Engine, engineVersion, inspectModel, type ModelInfo, modelHash, type RoutingSpec } from '@moefleet/edge-agent/engine';
import { routingMethod } from '@moefleet/proto';
import type { EvaluationSource, FromChild, ToChild } from './evaluation-protocol';
import { type Domain, type Evaluation, type EvaluationPoint, EvaluationInputError, type EvaluationSubject } from './evaluator';
import { fieldsOf } from './model';

/** Engine error codes that say that the model, and not the machine, is to blame. */
const BAD_INPUT_CODES = ['MODEL_FORMAT', 'NOT_MOE', 'BAD_ARGUMENT', 'CAPACITY', 'CONTEXT_FULL'];

const MODEL_CODES = ['MODEL_FORMAT', 'NOT_MOE'];

interface Opened { engine: Engine; /** per domain */ tokens: Int32Array[]; context: number; }

let opened: Opened | null = null;
let modelPath = '';
let running = new AbortController();

// Ctrl-C reaches the whole process group; the learner decides when this process ends, and it ends with the learner.
process.on('SIGINT', () => {});
process.on('disconnect', () => process.exit(0));
process.on('message', (message: ToChild) => {
  switch (message.t) {
    case 'open': return void answer(async () => ({ t: 'opened', subject: await open(message.source) }));
    case 'evaluate': return void answer(async () => ({ t: 'evaluated', evaluation: await evaluate(message.point, message.domain) }));
    case 'cancel': return running.abort();
  }
});

async function answer(work: () => Promise<FromChild>): Promise<void> {
  running = new AbortController();
  try {
    send(await work());
  } catch (error) {
    const { message: said, code } = error as Error & { code?: string };
    // What the engine says of a tensor does not name the file.
    const message = MODEL_CODES.includes(code ?? '') && !said.includes(modelPath) ? `${modelPath}: ${said}` : said;
    send({ t: 'failed', message, badInput: error instanceof EvaluationInputError || BAD_INPUT_CODES.includes(code ?? '') });
  }
}

async function open(source: EvaluationSource): Promise<EvaluationSubject> {
  modelPath = source.modelPath;
  const texts = await Promise.all(source.textPaths.map(readText));
  await access(source.modelPath, constants.R_OK).catch((error: NodeJS.ErrnoException) => {
    throw new EvaluationInputError(`${source.modelPath}: cannot read the model file (${error.code === 'ENOENT' ? 'no such file' : error.message}); name it with --model`);
  });
  const info = await inspectModel(source.modelPath);
  const engine = await Engine.open({
    modelPath: source.modelPath, contextTokens: source.context, threads: source.threads, lanes: 0, directIo: true, prefillBytes: 0,
    // The same experts are needed again and again, whatever the capacity under test.
    keepAll: info.fileBytes * 2 < freemem(),
    spec: { routing: 'cache_prior', lambda: 0, topJ: 0, capacities: info.moeLayers.map(() => info.experts), generation: 0 },
  });
  const tokens = texts.map(({ text }) => engine.tokenize(text, false, false));
  const short = tokens.findIndex(({ length }) => length < source.tokens + 1);
  if (short >= 0) {
    await engine.close();
    throw new EvaluationInputError(`${source.textPaths[short]}: the text has ${tokens[short]!.length} tokens, ${source.tokens + 1} are needed; give a longer text or fewer --tokens`);
  }
  opened = { engine, tokens: tokens.map((all) => all.slice(0, source.tokens + 1)), context: source.context };
  return subjectOf(info, await modelHash(source.modelPath), texts.map(({ domain }) => domain));
}

async function readText(path: string): Promise<{ text: string; domain: Domain }> {
  const bytes = await readFile(path).catch((error: NodeJS.ErrnoException) => {
    throw new EvaluationInputError(`${path}: cannot be read (${error.code === 'ENOENT' ? 'no such file' : error.message}); name a UTF-8 text with --text`);
  });
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    return { text, domain: { name: nameOf(path), textHash: createHash('sha256').update(bytes).digest('hex') } };
  } catch {
    throw new EvaluationInputError(`${path}: not UTF-8 text; convert it first, e.g. with iconv -t UTF-8`);
  }
}

function nameOf(path: string): string {
  return basename(path, extname(path));
}

function subjectOf(info: ModelInfo, hash: string, domains: Domain[]): EvaluationSubject {
  return {
    modelName: nameOf(modelPath), modelHash: hash, domains, moeLayers: info.moeLayers.length, experts: info.experts, topK: info.topK, expertBytes: info.expertBytes, engineVersion: engineVersion(),
  };
}

async function evaluate(point: EvaluationPoint, domain: number): Promise<Evaluation> {
  if (!opened) throw new Error('evaluate before open');
  const { engine, tokens, context } = opened;
  const result = await engine.evaluate({
    tokens: tokens[domain]!, context, stepped: false,
    spec: specOf(point, engine.info()),
  }, (done, total) => send({ t: 'progress', fraction: done / total }), running.signal);
  return {
    crossEntropy: result.crossEntropy, windows: windowMeans(result.tokenNll, context), missRate: result.missRate, layerMissRates: result.perLayer.map((layer) => layer.missRate),
    swapRate: result.swapRate, massLost: result.massLost, evalNs: result.evalNs,
  };
}

function specOf(point: EvaluationPoint, ranks: Pick<ModelInfo, 'topK' | 'experts'>): RoutingSpec {
  const { routing, lambda, topJ, ...read } = fieldsOf(point, ranks);
  return { routing: routingMethod(routing)!, lambda, topJ, ...read, capacities: [...point.capacities], generation: 0 };
}

function windowMeans(nll: Float32Array, context: number): Float64Array {
  const means = new Float64Array(nll.length / context);
  for (let window = 0; window < means.length; window += 1) {
    let sum = 0;
    for (let i = 0; i < context; i += 1) sum += nll[window * context + i]!;
    means[window] = sum / context;
  }
  return means;
}

function send(message: FromChild): void {
  if (process.connected) process.send!(message);
}
