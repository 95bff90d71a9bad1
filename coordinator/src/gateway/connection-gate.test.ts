/** Connections before hello: let in at a rate, held for a while, reset beyond that; mute ones are cut. */
import { credentials } from '@grpc/grpc-js';
import { ArtifactServiceClient } from '@moefleet/proto';
import { EventEmitter } from 'node:events';
import { connect, type Socket } from 'node:net';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { TestAgent } from '../testing/test-agent';
import { startCoordinator, type TestCoordinator } from '../testing/test-coordinator';
import { ConnectionGate, type ConnectionOutcome } from './connection-gate';

let redis: TestRedis;
let coordinator: TestCoordinator | undefined;
const agents: TestAgent[] = [];
const sockets: Socket[] = [];

beforeAll(async () => { redis = await startRedis(); });
afterAll(() => redis.close());
afterEach(async () => {
  for (const agent of agents.splice(0)) agent.kill();
  for (const socket of sockets.splice(0)) socket.destroy();
  await coordinator?.close();
});

async function outcomes(): Promise<Record<ConnectionOutcome, number>> {
  const text = await (await fetch(`${coordinator!.http}/metrics`)).text();
  const count = (outcome: string) => Number(new RegExp(`^moefleet_coordinator_connections_total\\{outcome="${outcome}"\\} (\\d+)$`, 'm').exec(text)![1]);
  return { admitted: count('admitted'), refused: count('refused'), silent: count('silent') };
}

/** A connection that says nothing. */
function mute(): Socket {
  const [host, port] = coordinator!.gateway.split(':');
  const socket = connect(Number(port), host).on('error', () => {}).resume();
  sockets.push(socket);
  return socket;
}

function dial(id: string): TestAgent {
  const agent = new TestAgent(coordinator!.gateway, { id });
  agents.push(agent);
  agent.hello();
  return agent;
}

test('of a storm some are let in at the rate, the rest is reset; who comes again gets in', async () => {
  coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_CONNECTIONS_PER_SECOND: '2' }, connectionWaitMs: 4000 });
  let missing = Array.from({ length: 25 }, (_, at) => `d${at}`);
  const first = missing.map(dial);
  await until('some are in, and some reset', () => first.filter((agent) => agent.welcome).length >= 2 && first.filter((agent) => agent.ended).length > 10, 20_000, 20);
  const { admitted, refused } = await outcomes();
  expect(refused).toBeGreaterThan(10);
  const welcome = first.filter((agent) => agent.welcome).length;
  expect(welcome).toBeGreaterThanOrEqual(2);
  expect(admitted).toBeGreaterThanOrEqual(welcome);
  const isIn = new Set(first.filter((agent) => agent.welcome).map((agent) => agent.options.id));
  for (const agent of first) if (!agent.welcome) agent.kill();
  missing = missing.filter((id) => !isIn.has(id)).slice(0, 3);
  let second = missing.map(dial);
  await until('the next few are in', () => {
    second = second.map((agent) => {
      if (!agent.ended || agent.welcome) return agent;
      agent.kill();
      return dial(agent.options.id);
    });
    return second.every((agent) => agent.welcome);
  }, 20_000, 200);
  expect(first.filter((agent) => isIn.has(agent.options.id)).every((agent) => agent.ended === null)).toBe(true);
});

test('cuts connections that say nothing, which keep nobody out meanwhile', async () => {
  coordinator = await startCoordinator(redis.url, { env: { MOEFLEET_CONNECTIONS_PER_SECOND: '16' }, helloTimeoutMs: 2500 });
  const silent = [mute(), mute(), mute(), mute(), mute(), mute()];
  await until('most were let in', async () => (await outcomes()).admitted >= 4, 10_000, 20);
  const agent = dial('honest');
  await until('the honest one is in', () => agent.welcome, 20_000, 20);
  await until('the silent ones are cut', () => silent.every((socket) => socket.destroyed), 20_000, 20);
  expect((await outcomes()).silent).toBe(6);
  expect(agent.ended).toBeNull();
});

test('a connection whose only call is another than a stream, such as for an artifact, is not silent', async () => {
  coordinator = await startCoordinator(redis.url, { helloTimeoutMs: 300 });
  const client = new ArtifactServiceClient(coordinator.gateway, credentials.createInsecure());
  await new Promise<void>((resolve) => { client.findArtifact({ name: 'a' }, () => resolve()); });
  const later = mute();
  await until('one that came later is cut', () => later.destroyed, 10_000, 20);
  expect((await outcomes()).silent).toBe(1);
  client.close();
});

test('one that leaves before it has said anything gives its place to the next', () => {
  jest.useFakeTimers();
  try {
    const told: ConnectionOutcome[] = [];
    const gate = new ConnectionGate({ connectionsPerSecond: 4, now: () => 0 }, () => {}, (outcome) => told.push(outcome));
    const first = new TestSocket(1);
    for (const socket of [first, new TestSocket(2)]) gate.offer(socket as unknown as Socket);
    jest.advanceTimersByTime(100);
    expect([told, gate.waiting]).toEqual([['admitted'], 1]);
    first.emit('close');
    jest.advanceTimersByTime(100);
    expect([told, gate.waiting]).toEqual([['admitted', 'admitted'], 0]);
    gate.close();
  } finally {
    jest.useRealTimers();
  }
});

test('begins fewer handshakes while the process itself is late, and as many as before once it is not', () => {
  jest.useFakeTimers();
  try {
    let nowMs = 0;
    const told: ConnectionOutcome[] = [];
    const gate = new ConnectionGate({ connectionsPerSecond: 40, mostWaitMs: 60_000, now: () => nowMs }, () => {}, (outcome) => told.push(outcome));
    for (let at = 0; at < 100; at += 1) gate.offer(new TestSocket(at) as unknown as Socket);
    expect(told.length).toBe(10);
    // A sweep that should have come a second ago: those before count no more, and less than a quarter is begun.
    nowMs += 1020;
    jest.advanceTimersByTime(20);
    expect(told.length).toBe(12);
    for (const endMs = nowMs + 3000; nowMs < endMs; jest.advanceTimersByTime(20)) nowMs += 20;
    const before = told.length;
    for (const endMs = nowMs + 1000; nowMs < endMs; jest.advanceTimersByTime(20)) nowMs += 20;
    expect(told.length - before).toBe(10);
    gate.close();
  } finally {
    jest.useRealTimers();
  }
});

test('resets at once whoever could not get its turn in time', () => {
  const told: ConnectionOutcome[] = [];
  const gate = new ConnectionGate({ connectionsPerSecond: 40, mostWaitMs: 10_000, now: () => 0 }, () => {}, (outcome) => told.push(outcome));
  const sockets = Array.from({ length: 500 }, (_, at) => new TestSocket(at));
  for (const socket of sockets) gate.offer(socket as unknown as Socket);
  // Ten are under way; of the rest there is room for ten seconds' worth.
  expect([told.filter((outcome) => outcome === 'refused').length, gate.waiting]).toEqual([90, 400]);
  expect(sockets.filter((socket) => socket.reset)).toEqual(sockets.slice(410));
  gate.close();
});

test('whoever leaves while it waits is forgotten; what one has said meanwhile is still to be read', () => {
  jest.useFakeTimers();
  try {
    let nowMs = 0;
    const admitted: TestSocket[] = [];
    const gate = new ConnectionGate({ connectionsPerSecond: 4, now: () => nowMs }, (socket) => admitted.push(socket as unknown as TestSocket), () => {});
    const [first, second, third] = [1, 2, 3].map((port) => new TestSocket(port)) as [TestSocket, TestSocket, TestSocket];
    for (const socket of [first, second, third]) gate.offer(socket as unknown as Socket);
    for (const word of ['hel', 'lo']) third.emit('data', Buffer.from(word));
    second.emit('end');
    expect(gate.waiting).toBe(1);
    nowMs += 1100;
    jest.advanceTimersByTime(100);
    expect(admitted).toEqual([first, third]);
    expect(String(third.unread)).toBe('hello');
    expect(third.listenerCount('data')).toBe(0);
    gate.close();
  } finally {
    jest.useRealTimers();
  }
});

test('resets whoever says more than anybody has to say while it waits', () => {
  const told: ConnectionOutcome[] = [];
  const gate = new ConnectionGate({ connectionsPerSecond: 4, now: () => 0 }, () => {}, (outcome) => told.push(outcome));
  const [first, second] = [new TestSocket(1), new TestSocket(2)];
  for (const socket of [first, second]) gate.offer(socket as unknown as Socket);
  second.emit('data', Buffer.alloc(8000));
  expect([second.reset, gate.waiting]).toEqual([false, 1]);
  second.emit('data', Buffer.alloc(1000));
  expect([second.reset, gate.waiting, told]).toEqual([true, 0, ['admitted', 'refused']]);
  expect(second.listenerCount('data')).toBe(0);
  gate.close();
});

test('resets whoever has waited too long', () => {
  jest.useFakeTimers();
  try {
    let nowMs = 0;
    const told: ConnectionOutcome[] = [];
    const gate = new ConnectionGate({ connectionsPerSecond: 2, mostWaitMs: 3000, now: () => nowMs }, () => {}, (outcome) => told.push(outcome));
    const pass = (ms: number) => { nowMs += ms; jest.advanceTimersByTime(100); };
    for (let at = 0; at < 4; at += 1) gate.offer(new TestSocket(at) as unknown as Socket);
    expect([told, gate.waiting]).toEqual([['admitted'], 3]);
    // The one that is in says nothing, and holds its place for a second.
    pass(900);
    expect([told.length, gate.waiting]).toEqual([1, 3]);
    pass(100);
    expect([told.slice(1), gate.waiting]).toEqual([['admitted'], 2]);
    pass(2500);
    expect([told.slice(2), gate.waiting]).toEqual([['refused', 'refused'], 0]);
    gate.close();
    gate.offer(new TestSocket(9) as unknown as Socket);
    expect(told.at(-1)).toBe('refused');
    expect(jest.getTimerCount()).toBe(0);
  } finally {
    jest.useRealTimers();
  }
});

class TestSocket extends EventEmitter {
  readonly remoteAddress = '127.0.0.1';
  reset = false;
  unread: Buffer | null = null;
  constructor(readonly remotePort: number) { super(); }
  pause(): this { return this; }
  resume(): this { return this; }
  unshift(bytes: Buffer): void { this.unread = bytes; }
  destroy(): void {}
  resetAndDestroy(): void { this.reset = true; }
}
