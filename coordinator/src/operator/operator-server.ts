/** The server for operators and learners, with gRPC health checking and reflection. */
import { type PackageDefinition, loadFileDescriptorSetFromBuffer, loadSync } from '@grpc/proto-loader';
import type { ServerCredentials } from '@grpc/grpc-js';
import { ReflectionService } from '@grpc/reflection';
import {
  AccessServiceService, ArtifactStoreServiceService, DESCRIPTOR_SET_PATH, FleetServiceService, IdentityServiceService, InventoryServiceService, KnowledgeServiceService, LearnerServiceService, ModelStoreServiceService, OperatorServiceService,
  RolloutServiceService, WindowServiceService,
} from '@moefleet/proto';
import type { Service } from '@moefleet/runtime';
import { HealthImplementation, protoPath as healthProtoPath } from 'grpc-health-check';
import { readFileSync } from 'node:fs';
import { type CallObserver, countCalls } from '../grpc-call-count';
import { GrpcListener } from '../grpc-listener';
import type { ListenAddress } from '@moefleet/runtime';
import { accessService } from './access-service';
import { artifactStoreService } from './artifact-store-service';
import { fleetService } from './fleet-service';
import { identityService } from './identity-service';
import { inventoryService } from './inventory-service';
import { knowledgeService } from './knowledge-service';
import { learnerService } from './learner-service';
import { modelStoreService } from './model-store-service';
import { operatorAuth } from './operator-auth';
import { type OperatorDeps, operatorService } from './operator-service';
import { rolloutService } from './rollout-service';
import { windowService } from './window-service';

/** A quality surface of many layers and points fits. */
const MOST_MESSAGE_BYTES = 16 * 1024 * 1024;
/** What is served here; '' is the server as a whole. */
const HEALTH_NAMES = ['', ...['Operator', 'Learner', 'Knowledge', 'Access', 'Inventory', 'Identity', 'Rollout', 'Fleet', 'Window', 'ArtifactStore', 'ModelStore'].map((name) => `moefleet.v1.${name}Service`)];

export class OperatorServer implements Service {
  readonly name = 'operator API';
  private readonly listener: GrpcListener;
  private readonly health = new HealthImplementation();
  private unsubscribe: (() => void)[] = [];

  /** `credentials`: default plaintext; `onCall` is told of each call that has ended */
  constructor(address: ListenAddress, private readonly deps: OperatorDeps, credentials?: () => ServerCredentials, onCall: CallObserver = () => {}) {
    this.listener = new GrpcListener(address, {
      'grpc.max_receive_message_length': MOST_MESSAGE_BYTES,
      interceptors: [countCalls(onCall), operatorAuth(deps.registry.operators, deps.requireOperatorToken, deps.log)],
    }, credentials);
    this.listener.serve(OperatorServiceService, operatorService(deps));
    this.listener.serve(LearnerServiceService, learnerService(deps));
    this.listener.serve(KnowledgeServiceService, knowledgeService(deps));
    this.listener.serve(AccessServiceService, accessService(deps));
    this.listener.serve(RolloutServiceService, rolloutService(deps));
    this.listener.serve(FleetServiceService, fleetService(deps));
    this.listener.serve(InventoryServiceService, inventoryService(deps));
    this.listener.serve(IdentityServiceService, identityService(deps));
    this.listener.serve(WindowServiceService, windowService(deps));
    this.listener.serve(ArtifactStoreServiceService, artifactStoreService(deps));
    this.listener.serve(ModelStoreServiceService, modelStoreService(deps));
    this.health.addToServer(this.listener.server);
  }

  get address(): string {
    return this.listener.boundAddress;
  }

  async start(): Promise<void> {
    new ReflectionService(describedServices(), { services: [...HEALTH_NAMES.filter(Boolean), 'grpc.health.v1.Health'] }).addToServer(this.listener.server);
    const { link } = this.deps.registry;
    this.tellHealth(link.up);
    this.unsubscribe = [link.onUp(() => this.tellHealth(true)), link.onDown(() => this.tellHealth(false))];
    await this.listener.listen();
  }

  async stop(): Promise<void> {
    for (const off of this.unsubscribe) off();
    this.tellHealth(false);
    await this.listener.close();
  }

  /** Without Redis no call can be served. */
  private tellHealth(serving: boolean): void {
    for (const name of HEALTH_NAMES) this.health.setStatus(name, serving ? 'SERVING' : 'NOT_SERVING');
  }
}

/**
 * Every message of a set names all files of the set, and reflection decodes the files of each entry that it is given: one
 * entry of each set tells the same in a fiftieth of the time.
 */
function describedServices(): PackageDefinition {
  const options = { keepCase: true };
  const sets = [loadFileDescriptorSetFromBuffer(readFileSync(DESCRIPTOR_SET_PATH), options), loadSync(healthProtoPath, options)];
  return Object.fromEntries(sets.flatMap((set) => Object.entries(set).filter(([, entry]) => 'fileDescriptorProtos' in entry).slice(0, 1)));
}
