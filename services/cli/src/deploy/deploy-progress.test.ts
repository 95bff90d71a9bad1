import { setTimeout as sleep } from 'node:timers/promises';
import { until } from '../../../../test/harness/ports';
import { Sink } from '../testing/run-captured';
import { DeployProgress } from './deploy-progress';

const terminal = (rows: number, columns = 40) => Object.assign(new Sink(), { isTTY: true, rows, columns });

test('on a terminal a table that is drawn over, no wider or longer than there is room, and gone at the end', async () => {
  const stream = terminal(4);
  const progress = new DeployProgress(stream, ['a', 'b', 'c', 'd', 'e']);
  progress.update('a', 'bundle', 0.5);
  progress.update('b', `model: ${'x'.repeat(60)}`);
  progress.update('c', 'done');
  await until('it is drawn', () => stream.text.includes('5 hosts'), 5000, 5);
  const drawn = stream.text.split('\x1b[J').at(-1)!.split('\n').slice(0, -1);
  expect(drawn).toEqual(['a  bundle 50%', `b  model: ${'x'.repeat(29)}`, '5 hosts: 1 done, 0 failed, 2 waiting']);
  progress.update('a', 'done');
  progress.end();
  expect(stream.text.endsWith('\x1b[3A\r\x1b[J')).toBe(true);
  const { text } = stream;
  await sleep(250);
  expect(stream.text).toBe(text);
});

test('elsewhere a line per phase, and of a copy one now and then', () => {
  const stream = new Sink();
  let nowMs = 10_000;
  const progress = new DeployProgress(stream, ['a'], () => nowMs);
  for (let i = 0; i <= 10; i += 1) {
    progress.update('a', 'model', i / 10);
    nowMs += 1000;
  }
  progress.update('a', 'done');
  progress.end();
  expect(stream.text).toBe('a: model 0%\na: model 50%\na: model 100%\na: done\n');
});
