import { createLogger } from './log';
import { Lifecycle, type Service } from './lifecycle';

function part(name: string, seen: string[], fails: { start?: boolean; stop?: boolean } = {}): Service {
  return {
    name,
    start: async () => {
      if (fails.start) throw new Error(`${name} cannot start`);
      seen.push(`+${name}`);
    },
    stop: async () => {
      seen.push(`-${name}`);
      if (fails.stop) throw new Error(`${name} cannot stop`);
    },
  };
}

const log = createLogger('test', 'silent');

test('stops in reverse order, each once, even if one throws', async () => {
  const seen: string[] = [];
  const lifecycle = new Lifecycle([part('a', seen), part('b', seen, { stop: true }), part('c', seen)], log);
  await lifecycle.start();
  await Promise.all([lifecycle.stop(), lifecycle.stop()]);
  expect(seen).toEqual(['+a', '+b', '+c', '-c', '-b', '-a']);
});

test('stops what had started when a part fails to', async () => {
  const seen: string[] = [];
  const lifecycle = new Lifecycle([part('a', seen), part('b', seen, { start: true }), part('c', seen)], log);
  await expect(lifecycle.start()).rejects.toThrow('b cannot start');
  expect(seen).toEqual(['+a', '-b', '-a']);
});

test('does not wait beyond its deadline', async () => {
  const stuck: Service = { name: 'stuck', start: async () => {}, stop: () => new Promise(() => {}) };
  const seen: string[] = [];
  const lifecycle = new Lifecycle([part('a', seen), stuck], log, 20);
  await lifecycle.start();
  await lifecycle.stop();
  expect(seen).toEqual(['+a', '-a']);
});
