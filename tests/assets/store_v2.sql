BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'candidates');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',1,1);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["score", "parameters"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'format','2');
INSERT INTO "study_user_attributes" VALUES(2,1,'space','"5bd09b4d73751795"');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'remove conv',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [false, true]}}');
INSERT INTO "trial_params" VALUES(2,1,'width conv',16.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 16}}');
INSERT INTO "trial_params" VALUES(3,1,'kernel conv',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 3]}}');
INSERT INTO "trial_params" VALUES(4,2,'remove conv',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [false, true]}}');
INSERT INTO "trial_params" VALUES(5,2,'width conv',8.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 16}}');
INSERT INTO "trial_params" VALUES(6,2,'kernel conv',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 3]}}');
INSERT INTO "trial_params" VALUES(7,3,'remove conv',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [false, true]}}');
INSERT INTO "trial_params" VALUES(8,3,'width conv',16.0,'{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 16}}');
INSERT INTO "trial_params" VALUES(9,3,'kernel conv',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [1, 3]}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'evaluation','"{\"teacher\": \"teacher\", \"data\": \"data\", \"recipe\": \"recipe\", \"score\": 0.75, \"seconds\": 1.5, \"seed\": 7, \"status\": \"ok\", \"error\": null, \"architecture\": {\"space\": \"5bd09b4d73751795\", \"removed\": [], \"widths\": {}, \"kernels\": {}, \"channels\": {}}, \"cost\": {\"parameters\": 432, \"macs\": 5000, \"weight_bytes\": 1728, \"peak_activation_bytes\": 64, \"latency_ms\": 0.5, \"latency_spread_ms\": null}}"');
INSERT INTO "trial_user_attributes" VALUES(2,1,'digest','"0d2eee29ea4e765f"');
INSERT INTO "trial_user_attributes" VALUES(3,2,'evaluation','"{\"teacher\": \"teacher\", \"data\": \"data\", \"recipe\": \"recipe\", \"score\": 0.125, \"seconds\": 1.5, \"seed\": 7, \"status\": \"stopped\", \"error\": null, \"architecture\": {\"space\": \"5bd09b4d73751795\", \"removed\": [], \"widths\": {\"conv\": 8}, \"kernels\": {}, \"channels\": {}}, \"cost\": {\"parameters\": 432, \"macs\": 5000, \"weight_bytes\": 1728, \"peak_activation_bytes\": 64, \"latency_ms\": 0.5, \"latency_spread_ms\": null}}"');
INSERT INTO "trial_user_attributes" VALUES(4,2,'digest','"db213199edafcf53"');
INSERT INTO "trial_user_attributes" VALUES(5,3,'evaluation','"{\"teacher\": \"teacher\", \"data\": \"data\", \"recipe\": \"recipe\", \"score\": 0.0, \"seconds\": 1.5, \"seed\": 7, \"status\": \"failed\", \"error\": \"at node conv\", \"architecture\": {\"space\": \"5bd09b4d73751795\", \"removed\": [\"conv\"], \"widths\": {}, \"kernels\": {}, \"channels\": {}}, \"cost\": null}"');
INSERT INTO "trial_user_attributes" VALUES(6,3,'digest','"d0fca82458cf0cf7"');
INSERT INTO "trial_user_attributes" VALUES(7,3,'error','"at node conv"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,0.75,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,432.0,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,0.125,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,432.0,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-24 19:15:27.693387','2026-11-24 19:15:29.193387');
INSERT INTO "trials" VALUES(2,1,1,'PRUNED','2026-11-24 19:15:27.939071','2026-11-24 19:15:29.439071');
INSERT INTO "trials" VALUES(3,2,1,'FAIL','2026-11-24 19:15:28.079254','2026-11-24 19:15:29.579254');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
