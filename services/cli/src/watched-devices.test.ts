import { device } from './testing/scripted-operator';
import { WatchedDevices } from './watched-devices';

const tell = (watched: WatchedDevices, ...devices: ReturnType<typeof device>[]) => devices.flatMap((one) => watched.take({ event: { $case: 'device', value: one } }));
const ready = (watched: WatchedDevices, count: number) => watched.take({ event: { $case: 'present', value: count } });

test('tells who is there, then what has changed about whom, who joins and who goes', () => {
  const watched = new WatchedDevices(() => 7);
  watched.begin();
  expect(tell(watched, device('a'), device('b')).map((news) => news.event)).toEqual(['present', 'present']);
  expect(ready(watched, 2)).toEqual([{ event: 'ready', devices: 2 }]);
  expect(tell(watched, device('a', { online: false, drift: true }))).toMatchObject([{ event: 'changed', changed: ['online', 'drift'] }]);
  expect(tell(watched, device('a', { online: false, drift: true, labels: { class: 'tablet' } }))).toMatchObject([{ changed: ['labels'] }]);
  expect(tell(watched, device('c'))).toMatchObject([{ event: 'joined', device: { id: 'c' } }]);
  expect(watched.take({ event: { $case: 'gone', value: 'b' } })).toEqual([{ event: 'gone', deviceId: 'b' }]);
  expect([...watched.devices.keys()]).toEqual(['a', 'c']);
});

test('after a coordinator was away tells only what is other than before, and who has gone meanwhile', () => {
  const watched = new WatchedDevices();
  watched.begin();
  tell(watched, device('a'), device('b'), device('c'));
  ready(watched, 3);
  watched.begin();
  expect(tell(watched, device('a', { lastSeenMs: 99n }), device('b', { desiredGeneration: 4n }))).toMatchObject([{ event: 'changed', changed: ['desired'], device: { id: 'b' } }]);
  expect(ready(watched, 2)).toEqual([{ event: 'gone', deviceId: 'c' }]);
});

test('a field it knows nothing of is a change all the same; the order of labels and telemetry are none', () => {
  const watched = new WatchedDevices();
  watched.begin();
  tell(watched, device('a', { labels: { x: '1', y: '2' } }));
  ready(watched, 1);
  expect(tell(watched, device('a', { labels: { y: '2', x: '1' }, telemetry: undefined }))).toEqual([]);
  expect(tell(watched, device('a', { labels: { y: '2', x: '1' }, bootId: 'other' }))).toMatchObject([{ changed: ['other'] }]);
});
