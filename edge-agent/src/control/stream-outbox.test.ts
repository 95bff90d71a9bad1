import { DeviceInfo, Reported, RouterWindow, TelemetryFrame } from '@moefleet/proto';
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

test('windows are bounded and the oldest gives way', () => {
  const outbox = new StreamOutbox();
  const kept = Array.from({ length: 10 }, (_, i) => outbox.putWindow(RouterWindow.fromPartial({ windowId: String(i) })));
  expect(kept.filter((fit) => !fit)).toHaveLength(2);
  expect(drain(outbox).map((body) => (body.value as RouterWindow).windowId)).toEqual(['2', '3', '4', '5', '6', '7', '8', '9']);
});

test('a new stream begins without what Hello tells and without old tasks, but with the windows', () => {
  const outbox = new StreamOutbox();
  outbox.putReported(Reported.fromPartial({}));
  outbox.putTask({ taskId: 'a', state: { $case: 'failed', value: { reason: 'no' } } });
  outbox.putWindow(RouterWindow.fromPartial({ windowId: 'w' }));
  outbox.streamBegins();
  expect(drain(outbox).map(({ $case }) => $case)).toEqual(['routerWindow']);
});
