/**
 * Measurements that the rollout engine wants of devices, wherever those are connected: the request lies with the
 * device, the coordinator that has its stream carries it out and puts the answer beside it.
 */
import { createHash } from 'node:crypto';
import { Measure, MeasureResult } from '@moefleet/proto';
import { reasonOf } from '../errors';
import type { Keys } from './keys';
import type { RedisLink } from './redis-link';

export type MeasureAnswer = { t: 'measured'; result: MeasureResult } | { t: 'failed'; reason: string };

/** Nobody waits longer. */
const TTL_MS = 3_600_000;

export class MeasureStore {
  constructor(private readonly link: RedisLink, private readonly keys: Keys) {}

  /** Replaces an earlier request of the device. The text is kept once for all devices. */
  async ask(deviceId: string, id: string, measure: Measure): Promise<void> {
    const textHash = createHash('sha256').update(measure.text).digest('hex');
    const [key, textKey] = [this.keys.measure(deviceId), this.keys.measureText(textHash)];
    await this.link.run(textKey, (client) => client.set(textKey, measure.text, 'PX', TTL_MS));
    const request = Buffer.from(Measure.encode({ ...measure, text: '' }).finish());
    await this.link.run(key, (client) => client.multi().del(key).hset(key, 'id', id, 'request', request, 'text', textHash).pexpire(key, TTL_MS).exec());
  }

  /** What is asked of the device and not answered yet; null for nothing. */
  async wanted(deviceId: string): Promise<{ id: string; measure: Measure } | null> {
    const key = this.keys.measure(deviceId);
    const found = await this.link.run(key, (client) => client.hgetallBuffer(key));
    const [id, textHash] = [found['id']?.toString() ?? '', found['text']?.toString() ?? ''];
    if (!id || !found['request'] || found['answer']) return null;
    const textKey = this.keys.measureText(textHash);
    const text = await this.link.run(textKey, (client) => client.get(textKey));
    if (text === null) return null;
    return { id, measure: { ...Measure.decode(found['request']), text } };
  }

  async answer(deviceId: string, id: string, answer: MeasureAnswer): Promise<void> {
    const key = this.keys.measure(deviceId);
    const bytes = answer.t === 'measured' ? Buffer.from(MeasureResult.encode(answer.result).finish()) : Buffer.from(answer.reason);
    await this.link.run(key, (client) => client.hset(key, 'answer', id, answer.t, bytes));
  }

  /** To the request `id`; null while there is none, or where another has been asked for since. */
  async answered(deviceId: string, id: string): Promise<MeasureAnswer | null> {
    const key = this.keys.measure(deviceId);
    const found = await this.link.run(key, (client) => client.hgetallBuffer(key));
    if (found['answer']?.toString() !== id) return null;
    if (!found['measured']) return { t: 'failed', reason: found['failed']?.toString('utf8') ?? 'it gave no reason' };
    try {
      return { t: 'measured', result: MeasureResult.decode(found['measured']) };
    } catch (error) {
      return { t: 'failed', reason: `its result cannot be decoded: ${reasonOf(error)}` };
    }
  }

  /** Whether `id` is what is asked of the device now, answered or not. */
  async asked(deviceId: string, id: string): Promise<boolean> {
    const key = this.keys.measure(deviceId);
    return await this.link.run(key, (client) => client.hget(key, 'id')) === id;
  }
}
