import type { ConnectResponse } from '@moefleet/proto';
import { Outbox } from './outbox';

function slowPeer() {
  const messages: ConnectResponse[] = [];
  let release: (() => void) | null = null;
  const left: bigint[] = [];
  const outbox = new Outbox({ write: (message, written) => { messages.push(message); release = written; } }, (desired) => left.push(desired.generation));
  return { outbox, messages, left, read: () => { const go = release; release = null; go?.(); } };
}

const desired = (generation: bigint) => ({ generation, spec: Buffer.alloc(0), origin: '' });

test('a peer that does not read holds one message in the stream and the newest desired here', () => {
  const { outbox, messages, left, read } = slowPeer();
  for (let generation = 1n; generation <= 1000n; generation += 1n) outbox.postDesired(desired(generation));
  expect(messages).toHaveLength(1);
  expect(left).toEqual([1n]);
  read();
  expect(left).toEqual([1n, 1000n]);
  read();
  expect(messages).toHaveLength(2);
});

test('welcome comes first, tasks keep their order, a request for the full state is made once', () => {
  const { outbox, messages, read } = slowPeer();
  outbox.post({ $case: 'welcome', value: { coordinatorId: 'c', protocolVersion: 1, telemetryIntervalMs: 1000, expertUseIntervalMs: 0 } });
  outbox.postReportFullState();
  outbox.postReportFullState();
  outbox.postDesired(desired(1n));
  outbox.post({ $case: 'task', value: { taskId: 'a', kind: undefined } });
  outbox.post({ $case: 'cancelTask', value: { taskId: 'a' } });
  for (let times = 0; times < 10; times += 1) read();
  expect(messages.map((message) => message.body?.$case)).toEqual(['welcome', 'task', 'cancelTask', 'desired', 'reportFullState']);
});

test('writes nothing once closed', () => {
  const { outbox, messages } = slowPeer();
  outbox.close();
  outbox.postDesired(desired(1n));
  expect(messages).toEqual([]);
});
