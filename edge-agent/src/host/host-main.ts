/**
 * The engine host: the one process of an agent that loads the native engine. It obeys its parent over IPC and nothing
 * else: terminal signals are the parent's business, and where the parent has gone this process has no reason to be.
 * It keeps no state worth saving, so it ends hard.
 */
import { writeFileSync } from 'node:fs';
import { modelHash } from '../engine';
import { type EngineHandle, loadAddon } from '../native';
import { type HostReply, type HostRequest, toRemoteError } from './host-protocol';

/** The engine knows its running evaluation by this id. */
const EVALUATE_REQUEST_ID = 'evaluate';
/** Added to the memory killer's score, in [-1000, 1000]: of the agent's two processes this one shall go first. */
const OOM_SCORE_ADJUSTMENT = 500;

const addon = loadAddon();
let engine: EngineHandle | null = null;
/** message id of the running request, and the id the engine knows it by */
const running = new Map<number, string>();

function reply(message: HostReply): void {
  if (process.connected) process.send!(message, undefined, undefined, () => {});
}

function opened(): EngineHandle {
  if (!engine) throw new Error('no model is open in this engine host');
  return engine;
}

async function answer(request: Exclude<HostRequest, { t: 'cancel' | 'close' }>): Promise<unknown> {
  switch (request.t) {
    case 'identify': {
      const info = await addon.inspect(request.modelPath);
      return { info, hash: await modelHash(info) };
    }
    case 'check': return addon.check(request.modelPath, () => {});
    case 'open':
      if (engine) throw new Error('a model is open already; each model gets an engine host of its own');
      engine = await addon.open(request.options);
      return null;
    case 'apply': return (await addon.apply(opened(), request.spec), null);
    case 'shrink': return (await addon.shrink(opened(), request.capacities), null);
    case 'warm': return addon.warm(opened(), request.ranked);
    case 'dropCache': return (await addon.dropCache(opened()), null);
    case 'tokenize': return addon.tokenize(opened(), request.text, request.addBos, request.parseSpecial);
    case 'applyChatTemplate': return addon.applyChatTemplate(opened(), request.messages);
    case 'generate':
      running.set(request.id, request.request.requestId);
      return addon.generate(opened(), request.request, (step) => reply({ t: 'step', id: request.id, step }));
    case 'evaluate':
      running.set(request.id, EVALUATE_REQUEST_ID);
      return addon.evaluate(opened(), request.request, (done, total) => reply({ t: 'progress', id: request.id, done, total }));
    case 'expertUse': return addon.expertUse(opened());
    case 'counters': return addon.counters(opened());
    case 'memory': return addon.memory(opened());
  }
}

async function close(): Promise<void> {
  if (engine) await addon.close(engine);
  process.exit(0);
}

function receive(request: HostRequest): void {
  if (request.t === 'close') {
    void close();
  } else if (request.t === 'cancel') {
    const name = running.get(request.id);
    if (name !== undefined && engine) addon.cancel(engine, name);
  } else {
    const { id } = request;
    answer(request)
      .then((value) => reply({ t: 'done', id, value }), (error: unknown) => reply({ t: 'failed', id, error: toRemoteError(error) }))
      .finally(() => running.delete(id));
  }
}

try {
  writeFileSync('/proc/self/oom_score_adj', String(OOM_SCORE_ADJUSTMENT));
} catch {
  // No such file outside Linux; the order in which the memory killer chooses is then its own.
}
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
process.on('message', (message) => receive(message as HostRequest));
