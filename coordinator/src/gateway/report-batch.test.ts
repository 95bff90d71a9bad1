/** Reports are written at the end of a turn, but not before what devices are to run. */
import { ReportBatch } from './report-batch';

const turn = () => new Promise((resolve) => { setImmediate(resolve); });
const sleep = (ms: number) => new Promise((resolve) => { setTimeout(resolve, ms); });

function device() {
  return { written: 0, writeReport(): void { this.written += 1; } };
}

test('writes what a device has said in a turn once, at its end', async () => {
  const batch = new ReportBatch(() => false);
  const [one, other] = [device(), device()];
  for (const each of [one, other, one]) batch.put(each);
  expect(one.written).toBe(0);
  await turn();
  expect([one.written, other.written]).toEqual([1, 1]);
  batch.put(one);
  await turn();
  expect([one.written, other.written]).toEqual([2, 1]);
});

test('waits while desired specs are being written, with those that come meanwhile', async () => {
  let writing = true;
  const batch = new ReportBatch(() => writing);
  const [one, other] = [device(), device()];
  batch.put(one);
  await sleep(30);
  batch.put(other);
  await turn();
  expect([one.written, other.written]).toEqual([0, 0]);
  writing = false;
  await sleep(50);
  expect([one.written, other.written]).toEqual([1, 1]);
});

test('waits for no longer than a second where specs are written without end', async () => {
  const batch = new ReportBatch(() => true);
  const one = device();
  batch.put(one);
  await sleep(1500);
  expect(one.written).toBe(1);
});
