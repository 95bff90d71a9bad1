/** The one datastore contract of the coordinator. No other folder has a Redis client. */
import type { Logger } from '@moefleet/runtime';
import { AuditStore } from './audit-store';
import { CoordinatorStore } from './coordinator-store';
import { DeviceStore } from './device-store';
import { FleetEvents } from './fleet-events';
import { IdentityStore } from './identity-store';
import { Keys } from './keys';
import { KnowledgeStore } from './knowledge-store';
import { LearnerStore } from './learner-store';
import { MeasureStore } from './measure-store';
import { OperatorStore } from './operator-store';
import { PeerStore } from './peer-store';
import { PinExpiryStore } from './pin-expiry-store';
import { PinStore } from './pin-store';
import type { RedisLink } from './redis-link';
import { RolloutStore } from './rollout-store';
import { StagedRolloutStore } from './staged-rollout-store';
import { TelemetryStore } from './telemetry-store';
import { UseStore } from './use-store';
import { WarmStore } from './warm-store';
import { TurnStore } from './turn-store';
import { type WindowBound, WindowStore } from './window-store';

export interface RegistryOptions {
  prefix: string;
  coordinatorId: string;
  windowBound?: WindowBound;
  mostRollouts?: number;
  mostAuditEntries?: number;
  /** by which pins end */
  now?: () => number;
}

export class Registry {
  readonly devices: DeviceStore;
  readonly pins: PinStore;
  readonly pinExpiry: PinExpiryStore;
  readonly rollouts: RolloutStore;
  readonly learner: LearnerStore;
  readonly knowledge: KnowledgeStore;
  readonly identities: IdentityStore;
  readonly events: FleetEvents;
  readonly audit: AuditStore;
  readonly stagedRollouts: StagedRolloutStore;
  readonly measures: MeasureStore;
  readonly telemetry: TelemetryStore;
  readonly coordinators: CoordinatorStore;
  readonly operators: OperatorStore;
  readonly warm: WarmStore;
  readonly uses: UseStore;
  readonly windows: WindowStore;
  readonly turns: TurnStore;
  readonly peers: PeerStore;

  constructor(readonly link: RedisLink, options: RegistryOptions, log: Logger) {
    const keys = new Keys(options.prefix);
    this.telemetry = new TelemetryStore(link, keys);
    this.coordinators = new CoordinatorStore(link, keys);
    this.devices = new DeviceStore(link, keys, log, options.now);
    this.identities = new IdentityStore(link, keys);
    this.pinExpiry = new PinExpiryStore(link, keys, options.coordinatorId);
    this.pins = new PinStore(link, keys, this.pinExpiry, log, options.now);
    this.rollouts = new RolloutStore(link, keys, options.mostRollouts);
    this.learner = new LearnerStore(link, keys);
    this.knowledge = new KnowledgeStore(link, keys, log);
    this.stagedRollouts = new StagedRolloutStore(link, keys, log);
    this.measures = new MeasureStore(link, keys);
    this.warm = new WarmStore(link, keys);
    this.uses = new UseStore(link, keys, log);
    this.operators = new OperatorStore(link, keys);
    this.peers = new PeerStore(link, keys);
    this.turns = new TurnStore(link, keys);
    this.windows = new WindowStore(link, keys, log, options.windowBound);
    this.audit = new AuditStore(link, keys, options.coordinatorId, log, options.mostAuditEntries);
    this.events = new FleetEvents(link, keys, options.coordinatorId, log);
  }
}
