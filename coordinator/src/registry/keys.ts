/**
 * Every key of the registry. What one script touches carries the same hash tag, so that it lies in one slot of a
 * Redis Cluster.
 */
/** How many shards of counts there are: enough to spread over the nodes of a cluster, few enough to be summed at every look. With another number every device's record would be lost. */
const SHARDS = 16;

export class Keys {
  constructor(private readonly prefix: string) {}

  /** set: ids of all devices ever seen */
  get devices(): string { return `${this.prefix}:{devices}`; }
  /** pub/sub channel of fleet events */
  get events(): string { return `${this.prefix}:events`; }
  /** hash: `<field>|fleet` and `<field>|group:<selector>` → JSON of a pin */
  get pins(): string { return `${this.prefix}:{pins}`; }
  /** sorted set: rollout ids by creation time */
  get rollouts(): string { return `${this.prefix}:{rollouts}`; }
  /** string: JSON of a rollout */
  rollout(id: string): string { return `${this.prefix}:{rollouts}:${id}`; }
  /** sorted set: ids of staged rollouts by creation time */
  get stagedRollouts(): string { return `${this.prefix}:{rollouts}:staged`; }
  /** set: ids of staged rollouts that have not ended */
  get activeRollouts(): string { return `${this.prefix}:{rollouts}:active`; }
  /** hash: revision, record (JSON) */
  stagedRollout(id: string): string { return `${this.prefix}:{rollouts}:staged:${id}`; }
  /** hash: device id → JSON of its row */
  stagedRows(id: string): string { return `${this.stagedRollout(id)}:rows`; }
  /** string with a time to live: a text that devices measure themselves on, by its SHA-256 */
  measureText(hash: string): string { return `${this.prefix}:{measure-text}:${hash}`; }
  /** hash with a time to live: id, request (bytes), text (SHA-256); answer (the id again), measured (bytes) or failed (why) */
  measure(id: string): string { return this.device(id, 'measure'); }
  /** string with a time to live: what the learner is doing */
  get activity(): string { return `${this.prefix}:{learner}:activity`; }
  /** stream: the audit log, one field `entry` with JSON */
  get audit(): string { return `${this.prefix}:{audit}`; }
  /** hash: operator's name → JSON of its token's record */
  get operators(): string { return `${this.prefix}:{operators}`; }
  /** hash: SHA-256 of a token in force (hex) → operator's name */
  get operatorTokens(): string { return `${this.prefix}:{operators}:tokens`; }
  /** string: counts up, one per pin set */
  get pinOrder(): string { return `${this.prefix}:{pins}:order`; }
  /** sorted set: `<field>|fleet`, `<field>|group:<selector>` or `<field>|device:<id>` of pins that end, by when they do */
  get pinExpiry(): string { return `${this.prefix}:{pins}:expiry`; }
  /** string with a time to live: the coordinator that ends pins */
  get pinSweeper(): string { return `${this.prefix}:{pins}:sweeper`; }
  /** hash with a time to live: device id → JSON of what it holds of a model, of devices of one place */
  peers(group: string): string { return `${this.prefix}:{peers:${group}}`; }
  /** string with a time to live: who does now what one does at a time */
  turn(name: string): string { return `${this.prefix}:{turn:${name}}`; }
  /** string: bytes of a QualitySurface */
  surface(modelHash: string, textHash: string): string { return `${this.prefix}:{surface:${modelHash}}:${textHash}`; }
  /** hash: info, model, reported, telemetry (bytes), installId, bootId, lastSeenMs, settledGeneration, reportedGeneration (highest that it has told of) */
  state(id: string): string { return this.device(id, 'state'); }
  /** hash: generation, spec (bytes), hash (hex), origin */
  desired(id: string): string { return this.device(id, 'desired'); }
  /** hash with a time to live: installId, bootId, coordinatorId, hostname, fence */
  lease(id: string): string { return this.device(id, 'lease'); }
  /** string: highest fence given out */
  fence(id: string): string { return this.device(id, 'fence'); }
  /** hash: `<field>` → JSON of a pin on this device */
  devicePins(id: string): string { return this.device(id, 'pins'); }
  /** hash: labels set by operators */
  labels(id: string): string { return this.device(id, 'labels'); }
  /** hash: model hash → bytes of the Proposal in force; `refused:<model hash>` → of one that was taken back; `last` → of the last outcome */
  learned(id: string): string { return this.device(id, 'learned'); }
  /** string: bytes of the DeviceKnowledge that the learner keeps */
  knowledge(id: string): string { return this.device(id, 'knowledge'); }
  /** list: bytes of RouterWindows, newest first */
  windows(id: string): string { return this.device(id, 'windows'); }
  /** string: sum of the bytes in `windows` */
  windowBytes(id: string): string { return this.device(id, 'window-bytes'); }

  /** set: ids of coordinators, some of them gone */
  get coordinators(): string { return `${this.prefix}:{coordinators}`; }
  /** string with a time to live: JSON of a coordinator that is alive */
  coordinator(id: string): string { return `${this.prefix}:{coordinators}:${id}`; }
  /** The shards of what is counted: sums and the records of the devices that add to them share a hash tag. */
  readonly shards: readonly number[] = Array.from({ length: SHARDS }, (_, shard) => shard);
  shardOf(id: string): number { return fnv1a(id) % SHARDS; }
  /** hash: `all|<counter>`, `model|<hash>|<counter>`, `class|<class>|<counter>`, `frames|<outcome>`, `boots` → sum */
  sums(shard: number): string { return this.shard(shard, 'sums'); }
  /** string: a ring of points (count-script.ts), of all devices of the shard together */
  sumsRing(shard: number): string { return this.shard(shard, 'ring'); }
  /** string: what was last counted of the device's latest boots (count-script.ts) */
  counted(id: string): string { return this.shard(this.shardOf(id), `counted:${id}`); }
  /** string: a ring of points of one device */
  ring(id: string): string { return this.shard(this.shardOf(id), `ring:${id}`); }
  /** string: bytes of the latest TelemetryFrame counted */
  frame(id: string): string { return this.shard(this.shardOf(id), `frame:${id}`); }
  private shard(shard: number, what: string): string { return `${this.prefix}:{count:${shard}}:${what}`; }
  /** hash with a time to live: boot, sequence, countedMs of the latest ExpertUse that counted */
  use(id: string): string { return this.device(id, 'use'); }
  /** string with a time to live: bytes of the DeviceUse */
  expertUse(id: string): string { return this.device(id, 'expert-use'); }
  /** sorted set: models (`<hash>:<layers>x<experts>`) that warm lists are kept of, by when they were last written */
  get warmModels(): string { return `${this.prefix}:{warm}:models`; }
  /** hash with a time to live: `use|<workload>` → bytes of a profile (warm/warm-profile.ts), `rev|<workload>` → its revision */
  warmProfiles(model: string): string { return `${this.prefix}:{warm:${model}}`; }
  /** hash: installId, keyHash, tokenId, hostname, enrolledMs, notAfterMs; marks: revokedMs, revokedWhy, unrevokedMs, releasedMs, clonedMs, clones (JSON) */
  identity(id: string): string { return this.device(id, 'identity'); }
  /** list with a time to live: JSON of the latest boots that said hello, newest first, one entry per change */
  boots(id: string): string { return this.device(id, 'boots'); }
  /** sorted set: ids of enrolment tokens by creation time */
  get enrolmentTokens(): string { return `${this.prefix}:{enrol}:tokens`; }
  /** hash with a time to live: secretHash, labels (JSON), uses, used, createdMs, expiresMs, revokedMs, why */
  enrolmentToken(id: string): string { return `${this.prefix}:{enrol}:token:${id}`; }
  /** set with a time to live: devices that have taken a use */
  enrolmentTokenUsers(id: string): string { return `${this.prefix}:{enrol}:token:${id}:by`; }

  /** All of a device in one slot but its fence and its identity. */
  deviceRecord(id: string): string[] {
    return [this.state(id), this.desired(id), this.lease(id), this.devicePins(id), this.labels(id), this.learned(id), this.knowledge(id), this.windows(id), this.windowBytes(id), this.measure(id), this.use(id), this.boots(id)];
  }

  /** What all keys of a device begin with that lie in its slot. */
  deviceHead(id: string): string { return `${this.prefix}:{dev:${id}}:`; }

  private device(id: string, what: string): string { return this.deviceHead(id) + what; }
}

/** 32-bit FNV-1a. */
function fnv1a(text: string): number {
  let hash = 0x811c9dc5;
  for (let at = 0; at < text.length; at += 1) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193) >>> 0;
  return hash;
}
