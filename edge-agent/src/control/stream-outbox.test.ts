import { DeviceInfo, Reported, TelemetryFrame } from '@moefleet/proto';
import { StreamOutbox } from './stream-outbox';

function drain(outbox: StreamOutbox) {
  const all = [];
  for (let message = outbox.next(); message; message = outbox.next()) all.push(message.body!);
  return all;
}

test('a newer message replaces an older one of its kind, and the answer to a change goes first', () => {
  const outbox = new StreamOutbox();
  for (let i = 1; i <= 3; i += 1) {
    outbox.putTelemetry(TelemetryFrame.fromPartial({ sequence: BigInt(i) }));
    outbox.putInfo(DeviceInfo.fromPartial({ hostname: `h${i}` }));
    outbox.putReported(Reported.fromPartial({ generation: BigInt(i) }));
    outbox.putTask({ taskId: 'a', state: { $case: 'progress', value: { fraction: i / 4, what: '' } } });
  }
  const all = drain(outbox);
  expect(all.map(({ $case }) => $case)).toEqual(['reported', 'info', 'telemetry', 'taskUpdate']);
  expect(all[0]).toMatchObject({ value: { generation: 3n } });
  expect(all[3]).toMatchObject({ value: { state: { value: { fraction: 0.75 } } } });
});

test('the end of a task takes the place of its progress', () => {
  const outbox = new StreamOutbox();
  outbox.putTask({ taskId: 'a', state: { $case: 'progress', value: { fraction: 1, what: '' } } });
  outbox.putTask({ taskId: 'a', state: { $case: 'failed', value: { reason: 'no' } } });
  expect(drain(outbox)).toEqual([{ $case: 'taskUpdate', value: { taskId: 'a', state: { $case: 'failed', value: { reason: 'no' } } } }]);
});

const part = (offset: number) => ({ $case: 'windowChunk' as const, value: { windowId: 'w', offset, totalBytes: 9, data: Buffer.of(1) } });

test('of an upload one message waits, behind everything else', () => {
  const outbox = new StreamOutbox();
  expect([outbox.putUpload(part(0)), outbox.putUpload(part(1))]).toEqual([true, false]);
  outbox.putTelemetry(TelemetryFrame.fromPartial({}));
  expect(drain(outbox)).toEqual([expect.objectContaining({ $case: 'telemetry' }), part(1)]);
});

test('a new stream begins without what Hello tells and without what began on the old one', () => {
  const outbox = new StreamOutbox();
  outbox.putReported(Reported.fromPartial({}));
  outbox.putTask({ taskId: 'a', state: { $case: 'failed', value: { reason: 'no' } } });
  outbox.putUpload(part(0));
  outbox.streamBegins();
  expect(drain(outbox)).toEqual([]);
});
